"""Backbones with the shapes of real ones and random weights: time and memory do not depend on the values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nifi_ns.diffusion import Backbone, Diffusion, Embeddings, FlowMatching, Prompt, StableDiffusion, StableDiffusion3

_VAE: dict[str, Any] = {
    **{"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    **{"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4},
}
# transformer/config.json and vae/config.json of stabilityai/stable-diffusion-3-medium-diffusers
SD3: dict[str, dict[str, Any]] = {
    "network": {
        **{"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24},
        **{"attention_head_dim": 64, "num_attention_heads": 24, "pos_embed_max_size": 192},
        **{"joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048},
    },
    "vae": {
        **{**_VAE, "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        **{"use_quant_conv": False, "use_post_quant_conv": False},
    },
}
# unet/config.json and vae/config.json of stabilityai/sd-turbo
SD_TURBO: dict[str, dict[str, Any]] = {
    "network": {
        **{"sample_size": 64, "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024},
        **{"use_linear_projection": True},
    },
    "vae": {**_VAE, "latent_channels": 4, "scaling_factor": 0.18215},
}
ARCHITECTURES = {"sd3": SD3, "sd-turbo": SD_TURBO}
TOKENS = {"sd3": 333, "sd-turbo": 77}  # 77 of CLIP, and 256 of T5
_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def schedule_of(name: str) -> FlowMatching | Diffusion:
    """Return the noise schedule of an architecture. Its values are needed, so create it outside `without_content`."""
    if name == "sd3":
        return FlowMatching.from_config({"num_train_timesteps": 1000, "shift": 3.0})
    return Diffusion.from_config({"num_train_timesteps": 1000, "prediction_type": "epsilon", **_BETAS})


@contextmanager
def without_content() -> Iterator[None]:
    """Create tensors with shapes but without content within the block, at no cost of memory or time."""
    from diffusers.models.modeling_utils import ModelMixin

    def stay(module: nn.Module, *_: Any, **__: Any) -> nn.Module:  # fake tensors cannot be moved and need not be
        return module

    moves = (mock.patch.object(kind, "to", stay) for kind in (nn.Module, ModelMixin))
    with FakeTensorMode(allow_non_fake_inputs=True), next(moves), next(moves):
        yield


def random_backbone(
    name: str,
    schedule: FlowMatching | Diffusion,
    device: torch.device,
    dtype: torch.dtype,
    shapes: dict[str, dict[str, Any]] | None = None,
) -> Backbone:
    """Return the architecture `name` with its own or other shapes and random weights."""
    shapes = shapes or ARCHITECTURES[name]
    torch.set_default_dtype(dtype)
    try:
        network, vae = _network(name, shapes["network"]), AutoencoderKL(**shapes["vae"])
    finally:
        torch.set_default_dtype(torch.float32)
    width = shapes["network"]["joint_attention_dim" if name == "sd3" else "cross_attention_dim"]
    tokens = torch.zeros(1, TOKENS[name], width, dtype=dtype)
    pooled = torch.zeros(1, shapes["network"]["pooled_projection_dim"], dtype=dtype) if name == "sd3" else None
    prompt = Prompt("", Embeddings(tokens, pooled), Embeddings(tokens, pooled))
    family = StableDiffusion3(network, schedule) if name == "sd3" else StableDiffusion(network, schedule)
    return Backbone(name, family, vae, prompt, device=device, dtype=dtype)


def _network(name: str, shape: dict[str, Any]) -> nn.Module:
    if name == "sd3":
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        return SD3Transformer2DModel(**shape)
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(**shape)
