"""Stable Diffusion 1.5 and 2.x, and SD-Turbo."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nifi_ns.diffusion._prompt import Embeddings, Prompt
from nifi_ns.diffusion._schedules import Diffusion
from nifi_ns.diffusion._sources import Source
from nifi_ns.diffusion.families._family import Family


class StableDiffusion(Family):
    """A U-Net that predicts epsilon or v, depending on its scheduler's config. Its latents are scaled, not shifted."""

    name = "sd"
    component = "unet"
    model_class = "UNet2DConditionModel"
    # The list in OSEDiff (github.com/cswry/OSEDiff), which turns the same U-Nets into one-step restorers.
    lora_targets = (
        *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out"),
        *("proj_in", "proj_out", "ff.net.2", "ff.net.0.proj"),
    )
    self_attention = ("attn1",)  # "attn2" attends to the text
    default_preset = "sd"

    @classmethod
    def unsupported_reason(cls, config: Mapping[str, Any]) -> str | None:
        """Return why SDXL's U-Net is not supported; None for other networks."""
        if config.get("addition_embed_type") is None:
            return None
        return "SDXL's U-Net (additional embeddings) is not supported; use SD1.5, SD2.x, SD-Turbo or SD3"

    @classmethod
    def preset_of(cls, source: Source) -> str:
        """Return `sd-turbo` for weights distilled to few steps without guidance, and `sd` otherwise.

        They are recognised by the trailing timesteps of Turbo's scheduler, which SD1.5 and SD2.x do not have.
        """
        config = source.config("scheduler/scheduler_config.json")
        return "sd-turbo" if config.get("timestep_spacing") == "trailing" else cls.default_preset

    @classmethod
    def read_schedule(cls, config: dict[str, Any]) -> Diffusion:
        """Return the table of the folder's scheduler."""
        return Diffusion.from_config(config)

    def encode_prompt(self, source: Source, text: str) -> Prompt:
        """Return embeddings of `text` and of the null prompt from the text encoder of `source`."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        parts: dict[str, Any] = {"unet": None, "vae": None, "safety_checker": None, "feature_extractor": None}
        pipeline: Any = StableDiffusionPipeline.from_pretrained(source.location, **parts, requires_safety_checker=False)
        with torch.no_grad():
            tokens, null = pipeline.encode_prompt(text, torch.device("cpu"), 1, True, negative_prompt="")
        return Prompt(text, Embeddings(tokens), Embeddings(null))

    def __call__(self, x_t: Tensor, timestep: Tensor, prompt: Embeddings) -> Tensor:
        """Return the predicted eps or v [B, C, h, w] for latents x_t [B, C, h, w] at `timestep` [B]."""
        return self.network(x_t, timestep, encoder_hidden_states=prompt.tokens, return_dict=False)[0]

    @property
    def latent_multiple(self) -> int:
        """1, because diffusers' U-Net upsamples to the exact sizes of its inputs."""
        return 1
