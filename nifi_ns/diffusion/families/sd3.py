"""Stable Diffusion 3 and 3.5, and nifi-tiny, which is an SD3 transformer in miniature."""

from typing import Any

import torch
from torch import Tensor

from nifi_ns.diffusion._prompt import Embeddings, Prompt
from nifi_ns.diffusion._schedules import FlowMatching
from nifi_ns.diffusion._sources import Source
from nifi_ns.diffusion.families._family import Family, LatentScaling


class StableDiffusion3(Family):
    """A transformer that predicts velocity, trained by flow matching (Esser et al. 2024)."""

    name = "sd3"
    component = "transformer"
    model_class = "SD3Transformer2DModel"
    # The list in the paper's inference code.
    lora_targets = (
        *("to_k", "to_q", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"),
        *("proj", "linear", "proj_out"),
    )
    # "attn" attends to image and text; "attn2", in some blocks of SD3.5-medium, to the image alone.
    self_attention = ("attn", "attn2")
    default_preset = "sd3"

    @classmethod
    def read_schedule(cls, config: dict[str, Any]) -> FlowMatching:
        """Return the table of the folder's scheduler, which includes the shift of the noise levels (3 for SD3)."""
        return FlowMatching.from_config(config)

    @classmethod
    def latent_scaling(cls, vae: Any) -> LatentScaling:
        """Return the scale, without a shift.

        Diffusers' pipelines subtract the `shift_factor` (0.0609) in vae/config.json. The paper's code
        (github.com/ceteke/nifi) only scales, and its checkpoints depend on that.
        """
        return LatentScaling(vae.scaling_factor, shift=0.0)

    def encode_prompt(self, source: Source, text: str) -> Prompt:
        """Return embeddings of `text` and of the null prompt from the text encoders of `source`."""
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

        # bfloat16, because T5 has 4.7 billion parameters. T5 may be missing: SD3 then uses zeros for its tokens.
        parts: dict[str, Any] = {"transformer": self.network, "vae": None, "torch_dtype": torch.bfloat16}
        if not source.has("text_encoder_3/config.json"):
            parts |= {"text_encoder_3": None, "tokenizer_3": None}
        pipeline: Any = StableDiffusion3Pipeline.from_pretrained(source.location, **parts)
        with torch.no_grad():
            tokens, null, pooled, null_pooled = pipeline.encode_prompt(text, text, text, negative_prompt="")
        return Prompt(text, Embeddings(tokens.float(), pooled.float()), Embeddings(null.float(), null_pooled.float()))

    def __call__(self, x_t: Tensor, timestep: Tensor, prompt: Embeddings) -> Tensor:
        """Return the velocity [B, C, h, w] for latents x_t [B, C, h, w] at `timestep` [B]."""
        return self.network(
            hidden_states=x_t,
            timestep=timestep,
            encoder_hidden_states=prompt.tokens,
            pooled_projections=prompt.pooled,
            return_dict=False,
        )[0]

    @property
    def latent_multiple(self) -> int:
        """Side of the transformer's patches."""
        return self.network.config.patch_size

    @property
    def max_latent_side(self) -> int:
        """Side of the table of position embeddings, which is cropped at its centre."""
        return self.network.config.pos_embed_max_size * self.network.config.patch_size
