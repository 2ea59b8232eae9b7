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
from peft import LoraConfig
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from nifi_ns.diffusion import Backbone, Embeddings, Prompt

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # of SD1.5, SD2.x and SD-Turbo
SCHEDULERS = {
    "sd3": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "sd-turbo": EulerDiscreteScheduler(**BETAS, prediction_type="epsilon", steps_offset=1, timestep_spacing="trailing"),
    "sd2-v": DDIMScheduler(**BETAS, prediction_type="v_prediction", steps_offset=1),
}
FAMILIES = list(SCHEDULERS)
_DIFIX_CHANNELS = (8, 8, 16, 16)


def save_prompt(folder: Path, dim: int, pooled: int | None) -> None:
    embeddings = [
        Embeddings(torch.randn(1, 3, dim), None if pooled is None else torch.randn(1, pooled)) for _ in range(2)
    ]
    Prompt("a photo", *embeddings).save(folder / "prompt.safetensors")


def save_vae(folder: Path, latent_channels: int, attention: bool, **scaling: float) -> None:
    """An autoencoder of two pixels per latent; `scaling`: its scaling_factor, and shift_factor if it has one."""
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
        **scaling,
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


# by what layers of the decoder have LoRA weights, according to public descriptions
_DIFIX_LORA = r"decoder\.(.*\.)?(conv1|conv2|conv_in|conv_shortcut|conv|conv_out|skip_conv_\d|to_k|to_q|to_v|to_out\.0)"


def difix_autoencoder() -> Any:
    """Difix's, as its training left it: skip convolutions and LoRA weights that say something."""
    blocks = len(_DIFIX_CHANNELS)
    config: dict[str, Any] = {"layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 2}
    config |= {"down_block_types": ("DownEncoderBlock2D",) * blocks, "up_block_types": ("UpDecoderBlock2D",) * blocks}
    config["block_out_channels"] = _DIFIX_CHANNELS
    vae: Any = AutoencoderKL(**config)
    sides = [(_DIFIX_CHANNELS[-1], 16), (8, 16), (8, 16), (8, 8)]  # in the real one 512-512, 256-512, 128-512, 128-256
    for i, (seen, wanted) in enumerate(sides):
        setattr(vae.decoder, f"skip_conv_{i + 1}", nn.Conv2d(seen, wanted, 1, bias=False))
    vae.add_adapter(LoraConfig(r=4, init_lora_weights="gaussian", target_modules=_DIFIX_LORA), "vae_skip")
    for name, parameter in vae.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter.data, std=0.1)
    return vae.eval()


def save_difix(folder: Path) -> None:
    """A folder of Difix's layout, its text encoder included."""
    save_sd(folder, "sd-turbo")
    (folder / "prompt.safetensors").unlink()
    save_text_encoders(folder, "sd-turbo")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DifixPipeline"}))
    vae = difix_autoencoder()
    config = {k: v for k, v in vae.config.items() if not k.startswith("_")}
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    save_file(vae.state_dict(), folder / "vae" / "diffusion_pytorch_model.safetensors")


def perturb(backbone: Backbone) -> None:
    """Give adapters that were just added something to say."""
    for name in ("phi_minus", "phi_plus"):
        for parameter in backbone.adapter_parameters(name):
            torch.nn.init.normal_(parameter.data, std=0.2)
