"""Miniature diffusion models of the families users have: random weights, in folders like the real ones."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from nifi_ns.restore import Backbone
from nifi_ns.restore.prompt import Embeddings, Prompt

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # of SD1.5, SD2.x and SD-Turbo
SCHEDULERS = {
    "sd3": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "sd-turbo": EulerDiscreteScheduler(**BETAS, prediction_type="epsilon", steps_offset=1),
    "sd2-v": DDIMScheduler(**BETAS, prediction_type="v_prediction", steps_offset=1),
}
FAMILIES = list(SCHEDULERS)


def save_prompt(folder: Path, dim: int, pooled: int | None) -> None:
    embeddings = [
        Embeddings(torch.randn(1, 3, dim), None if pooled is None else torch.randn(1, pooled)) for _ in range(2)
    ]
    Prompt("a photo", *embeddings).save(folder / "prompt.safetensors")


def save_vae(folder: Path, latent_channels: int, attention: bool, scaling_factor: float) -> None:
    config: dict[str, Any] = dict(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=2,
        mid_block_add_attention=attention,
        use_quant_conv=latent_channels == 4,  # as SD1/2's, and not SD3's
        use_post_quant_conv=latent_channels == 4,
        scaling_factor=scaling_factor,
    )
    AutoencoderKL(**config).save_pretrained(folder / "vae")


def save_tiny_decoder(folder: Path, latent_channels: int, **more: Any) -> None:
    """An AutoencoderTiny for miniatures whose autoencoder `save_vae` wrote."""
    sides: dict[str, Any] = dict(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8))
    sides |= dict(num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    AutoencoderTiny(latent_channels=latent_channels, **{**sides, **more}).save_pretrained(folder)


def save_sd3(folder: Path) -> None:
    SD3Transformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
    ).save_pretrained(folder / "transformer")
    save_vae(folder, 16, attention=True, scaling_factor=1.5305)
    SCHEDULERS["sd3"].save_pretrained(folder / "scheduler")
    save_prompt(folder, 16, pooled=16)


def save_sd(folder: Path, family: str) -> None:
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
    ).save_pretrained(folder / "unet")
    save_vae(folder, 4, attention=True, scaling_factor=0.18215)
    SCHEDULERS[family].save_pretrained(folder / "scheduler")
    save_prompt(folder, 8, pooled=None)


def save_text_encoders(folder: Path, family: str) -> None:
    """A tokenizer of single letters and a text encoder; for SD3 two of each, and no T5."""
    letters = [*"abcdefghijklmnopqrstuvwxyz,"]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    ids: dict[str, Any] = {
        "bos_token_id": len(words) - 2,
        "eos_token_id": len(words) - 1,
        "pad_token_id": len(words) - 1,
    }
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=8,
        projection_dim=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        **ids,
    )
    kind = CLIPTextModelWithProjection if family == "sd3" else CLIPTextModel
    suffixes = ("", "_2") if family == "sd3" else ("",)
    if family == "sd3":
        index = {"_class_name": "StableDiffusion3Pipeline", "text_encoder_3": [None, None], "tokenizer_3": [None, None]}
        index |= {"transformer": ["diffusers", "SD3Transformer2DModel"]}
    else:
        index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    for suffix in suffixes:
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        kind(config).save_pretrained(folder / f"text_encoder{suffix}")
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
        index[f"text_encoder{suffix}"] = ["transformers", kind.__name__]
    index["scheduler"] = ["diffusers", type(SCHEDULERS[family]).__name__]
    index["vae"] = ["diffusers", "AutoencoderKL"]
    (folder / "model_index.json").write_text(json.dumps(index))


def perturb(backbone: Backbone) -> None:
    """Give adapters that were just added something to say."""
    for name in ("phi_minus", "phi_plus"):
        for parameter in backbone.adapter_parameters(name):
            torch.nn.init.normal_(parameter.data, std=0.2)
