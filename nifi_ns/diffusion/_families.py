"""The families of diffusion backbones: what differs between them, one small class each."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nifi_ns.diffusion._prompt import Embeddings, Prompt
from nifi_ns.diffusion._schedules import Diffusion, FlowMatching, Schedule
from nifi_ns.diffusion._sources import Source
from nifi_ns.errors import NifiError


class Family(ABC):
    """A frozen network, its noise schedule and how it is called."""

    name: ClassVar[str]
    component: ClassVar[str]
    """The network's subfolder in a diffusers folder, and the prefix of its LoRA keys in `load_lora_weights`."""
    model_class: ClassVar[str]
    lora_targets: ClassVar[tuple[str, ...]]

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        self.network: Any = network
        self.schedule = schedule

    @classmethod
    @abstractmethod
    def load(cls, source: str, dtype: torch.dtype) -> "Family":
        """Network and schedule from a diffusers folder or hub id."""

    @abstractmethod
    def encode_prompt(self, source: Source, text: str) -> Prompt:
        """Embeddings of `text` and of the null prompt by the text encoders of `source`."""

    @abstractmethod
    def __call__(self, x_t: Tensor, timestep: Tensor, prompt: Embeddings) -> Tensor:
        """The network's raw output [B, C, h, w] for latents x_t [B, C, h, w] at `timestep` [B]."""

    @property
    @abstractmethod
    def latent_multiple(self) -> int:
        """Latent sides must be a multiple of this."""

    @property
    @abstractmethod
    def max_latent_side(self) -> int | None:
        """The largest latent side the network accepts, if there is a limit."""


class StableDiffusion3(Family):
    """SD3 and SD3.5, and nifi-tiny, which is an SD3 transformer in miniature: velocity, flow matching."""

    name = "sd3"
    component = "transformer"
    model_class = "SD3Transformer2DModel"
    # The list of the paper's inference code.
    lora_targets = (
        "to_k",
        "to_q",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "proj",
        "linear",
        "proj_out",
    )

    @classmethod
    def load(cls, source: str, dtype: torch.dtype) -> "StableDiffusion3":
        """Network and schedule from a diffusers folder or hub id."""
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        network = SD3Transformer2DModel.from_pretrained(
            source, subfolder="transformer", torch_dtype=dtype, use_safetensors=True
        )
        config: Any = FlowMatchEulerDiscreteScheduler.load_config(source, subfolder="scheduler")
        return cls(network, FlowMatching.from_config(config))

    def encode_prompt(self, source: Source, text: str) -> Prompt:
        """Embeddings of `text` and of the null prompt by the text encoders of `source`."""
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

        # bfloat16, because T5 has 4.7 billion parameters. A folder may lack it: SD3 then takes zeros for its tokens.
        parts: dict[str, Any] = {"transformer": self.network, "vae": None, "torch_dtype": torch.bfloat16}
        if not source.has("text_encoder_3/config.json"):
            parts |= {"text_encoder_3": None, "tokenizer_3": None}
        pipeline: Any = StableDiffusion3Pipeline.from_pretrained(source.location, **parts)
        with torch.no_grad():
            tokens, null, pooled, null_pooled = pipeline.encode_prompt(text, text, text, negative_prompt="")
        return Prompt(text, Embeddings(tokens.float(), pooled.float()), Embeddings(null.float(), null_pooled.float()))

    def __call__(self, x_t: Tensor, timestep: Tensor, prompt: Embeddings) -> Tensor:
        """The velocity [B, C, h, w] for latents x_t [B, C, h, w] at `timestep` [B]."""
        return self.network(
            hidden_states=x_t,
            timestep=timestep,
            encoder_hidden_states=prompt.tokens,
            pooled_projections=prompt.pooled,
            return_dict=False,
        )[0]

    @property
    def latent_multiple(self) -> int:
        """Latent sides must be a multiple of the patch."""
        return self.network.config.patch_size

    @property
    def max_latent_side(self) -> int:
        """The side of the position table, of which the centre is cropped."""
        return self.network.config.pos_embed_max_size * self.network.config.patch_size


class StableDiffusion(Family):
    """SD1.5, SD2.x and SD-Turbo: a U-Net that predicts epsilon or v, as its folder's scheduler says."""

    name = "sd"
    component = "unet"
    model_class = "UNet2DConditionModel"
    # The list of OSEDiff (github.com/cswry/OSEDiff), which turns the same U-Nets into one-step restorers.
    lora_targets = (
        *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out"),
        *("proj_in", "proj_out", "ff.net.2", "ff.net.0.proj"),
    )

    @classmethod
    def load(cls, source: str, dtype: torch.dtype) -> "StableDiffusion":
        """Network and schedule from a diffusers folder or hub id."""
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        network: Any = UNet2DConditionModel.from_pretrained(
            source, subfolder="unet", torch_dtype=dtype, use_safetensors=True
        )
        if network.config.addition_embed_type is not None:
            raise NifiError(
                f"{source}: SDXL's U-Net (additional embeddings) is not supported; use SD1.5, SD2.x, SD-Turbo or SD3"
            )
        config: Any = DDPMScheduler.load_config(source, subfolder="scheduler")
        return cls(network, Diffusion.from_config(config))

    def encode_prompt(self, source: Source, text: str) -> Prompt:
        """Embeddings of `text` and of the null prompt by the text encoder of `source`."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        parts: dict[str, Any] = {"unet": None, "vae": None, "safety_checker": None, "feature_extractor": None}
        pipeline: Any = StableDiffusionPipeline.from_pretrained(source.location, **parts, requires_safety_checker=False)
        with torch.no_grad():
            tokens, null = pipeline.encode_prompt(text, torch.device("cpu"), 1, True, negative_prompt="")
        return Prompt(text, Embeddings(tokens), Embeddings(null))

    def __call__(self, x_t: Tensor, timestep: Tensor, prompt: Embeddings) -> Tensor:
        """The predicted eps or v [B, C, h, w] for latents x_t [B, C, h, w] at `timestep` [B]."""
        return self.network(x_t, timestep, encoder_hidden_states=prompt.tokens, return_dict=False)[0]

    @property
    def latent_multiple(self) -> int:
        """Any size: diffusers' U-Net upsamples to the sizes it came from."""
        return 1

    @property
    def max_latent_side(self) -> None:
        """No limit: the U-Net has no position table."""
        return None


FAMILIES: tuple[type[Family], ...] = (StableDiffusion3, StableDiffusion)
