"""Difix (Wu et al. 2025), NVIDIA's one-step restorer of rendered views. Users supply the weights.

It is SD-Turbo's U-Net, fully fine-tuned, with SD-Turbo's autoencoder. Four 1x1 convolutions pass the inputs of the
encoder's blocks to the decoder. The decoder's LoRA weights are merged on reading. No noise is added at t0 = 199. In
`difix_ref`, self-attention also covers photos of other cameras. The licence of the weights (`nvidia/difix`,
`nvidia/difix_ref`) excludes commercial use. This package contains neither the weights nor any of their code.
"""

import re
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nifi_ns.diffusion import (
    PROMPT_FILE,
    CompileMode,
    Embeddings,
    Family,
    Prompt,
    Source,
    StableDiffusion,
    compile_networks,
    is_hub_id,
    placement,
    reading,
    resolve,
)
from nifi_ns.errors import CorruptFileError
from nifi_ns.restore._description import RestorerSettings

DIFIX_SETTINGS = RestorerSettings(t0=199, noise_scale=0.0, decode="full", attended_photos=1)
"""The settings that Difix was trained with."""
PROMPT = "remove degradation"
_PIPELINE = "DifixPipeline"
_VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
_SKIPS = 4
_LORA_SCALE = 8.0
"""peft's default lora_alpha, divided by the rank. Public descriptions of the training do not change it."""


def is_difix(path: Path) -> bool:
    """Return whether the `model_index.json` of a folder or hub repository names Difix's pipeline.

    Raises:
        NifiError: if it is a hub id and the hub cannot be reached or does not have it.
    """
    if not path.is_dir() and not is_hub_id(str(path)):
        return False
    with reading(str(path), "restorer"):
        source = resolve(str(path), "restorer")
        return source.has("model_index.json") and source.config("model_index.json").get("_class_name") == _PIPELINE


class SkipEncoder(nn.Module):
    """The encoder of a Stable Diffusion autoencoder. It also returns the inputs of its blocks."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder: Any = vae.encoder
        self.quant_conv: Any = vae.quant_conv

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the unscaled mode of the posterior and the blocks' inputs, given pixels [B, 3, H, W] in [-1, 1]."""
        encoder = self.encoder
        x, skipped = encoder.conv_in(pixels), []
        for block in encoder.down_blocks:
            skipped.append(x)
            x = block(x)
        x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(x))))
        return (x if self.quant_conv is None else self.quant_conv(x)).chunk(2, dim=1)[0], skipped


class SkipDecoder(nn.Module):
    """The decoder of a Stable Diffusion autoencoder. Its blocks also get the inputs of the encoder's blocks."""

    def __init__(self, vae: Any, convolutions: nn.ModuleList) -> None:
        """`convolutions`: a 1x1 convolution for each block of the decoder."""
        super().__init__()
        self.decoder: Any = vae.decoder
        self.post_quant_conv: Any = vae.post_quant_conv
        self.convolutions = convolutions

    def forward(self, latents: Tensor, skipped: list[Tensor]) -> Tensor:
        """Return pixels [B, 3, H, W], roughly in [-1, 1], given the unscaled latents and inputs from `SkipEncoder`."""
        decoder = self.decoder
        x = latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        x = decoder.mid_block(decoder.conv_in(x))
        for block, convolution, skip in zip(decoder.up_blocks, self.convolutions, reversed(skipped), strict=True):
            x = block(x + convolution(skip))
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))


class Difix:
    """Difix's network and autoencoder: a frozen `OneStepNetwork` without adapters."""

    max_side = None
    """No limit: a U-Net has no position table."""

    def __init__(
        self, family: Family, vae: Any, convolutions: nn.ModuleList, prompt: Prompt, device: torch.device
    ) -> None:
        """
        Args:
            family: the U-Net and its schedule.
            vae: the autoencoder, an AutoencoderKL of the U-Net's dtype.
            convolutions: the skip convolutions of `SkipDecoder`.
            prompt: the fixed prompt of the U-Net.
            device: where to run.
        """
        self.device = device
        self.family = family
        self.prompt = prompt.to(device, vae.dtype)
        self.latent_channels: int = vae.config.latent_channels
        self.downsampling = 2 ** (len(vae.config.block_out_channels) - 1)
        self.pixel_multiple = self.downsampling * family.latent_multiple
        self._dtype: torch.dtype = vae.dtype
        self._scaling = family.latent_scaling(vae.config)
        self._encoder = SkipEncoder(vae).to(device).eval()
        self._decoder = SkipDecoder(vae, convolutions).to(device, vae.dtype).eval()
        for part in (family.network.to(device).eval(), self._encoder, self._decoder):
            part.requires_grad_(False)
        self._lock = threading.RLock()

    @staticmethod
    def from_pretrained(
        name: str | Path, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Difix":
        """Load `nvidia/difix`, `nvidia/difix_ref` or a folder with the same layout.

        Args:
            name: a hub id or folder with unet, vae, scheduler, text_encoder and tokenizer in diffusers' subfolders.
            device: default: CUDA if there is a GPU, else the CPU.
            dtype: of the weights; default: bfloat16 on CUDA, float32 on the CPU.

        Raises:
            NifiError: if it cannot be found, downloaded or read.
            CorruptFileError: if it is damaged.
        """
        device, dtype = placement(device, dtype)
        source = resolve(str(name), "restorer")
        with reading(source.name, "restorer"):
            family = StableDiffusion.load(source, dtype)
            vae, convolutions = _load_autoencoder(source)
            prompt = Prompt.load(source.file(PROMPT_FILE)) if source.has(PROMPT_FILE) else _embed(source)
        return Difix(family, vae.to(dtype), convolutions, prompt, device)

    def restore(self, images: Tensor, noise: Tensor, t0: float, attended_photos: Tensor | None = None) -> Tensor:
        """Return restored views; see `OneStepNetwork`.

        Difix was trained with zero `noise`, on latents without the scaling down of the forward process.
        """
        views = images[:, None] if attended_photos is None else torch.cat([images[:, None], attended_photos], dim=1)
        batch, count = views.shape[:2]
        schedule = self.family.schedule
        with self._lock:
            z, skipped = self._encode(views.flatten(0, 1))
            x_t = z + schedule.sigma(t0) * noise[:, None].expand(batch, count, *z.shape[1:]).flatten(0, 1)
            timestep = torch.full((len(x_t),), float(schedule.timestep(t0)), device=self.device)
            with self.family.attend_across(count):
                out = self.family(x_t.to(self._dtype), timestep, self.prompt.expand(len(x_t))).float()
            x_0 = schedule.to_x0(x_t, out, t0)
            return self._decode(x_0[::count], [x[::count] for x in skipped])

    def autoencode(self, images: Tensor) -> Tensor:
        """Return the images after encoding and decoding; see `OneStepNetwork`."""
        with self._lock:
            return self._decode(*self._encode(images))

    def compile(self, mode: CompileMode) -> None:
        """Compile the U-Net, the encoder and the decoder on the first image of each size from now on.

        Raises:
            NifiError: if there is no C++ compiler.
        """
        compile_networks((self.family.network, self._encoder, self._decoder), mode)

    def _encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return scaled float32 latents and the block inputs for the decoder."""
        latents, skipped = self._encoder((images * 2 - 1).to(self.device, self._dtype))
        return self._scaling.apply(latents.float()), skipped

    def _decode(self, latents: Tensor, skipped: list[Tensor]) -> Tensor:
        return self._decoder(self._scaling.undo(latents).to(self._dtype), skipped).float() / 2 + 0.5


def _load_autoencoder(source: Source) -> tuple[Any, nn.ModuleList]:
    """Return the AutoencoderKL in `source`, its adapters merged, and the skip convolutions."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from safetensors.torch import load_file

    config: Any = {k: v for k, v in source.config("vae/config.json").items() if not k.startswith("_")}
    vae: Any = AutoencoderKL.from_config(config)
    state = merge_lora(load_file(source.file(_VAE_FILE)))
    skips = [state.pop(f"decoder.skip_conv_{i + 1}.weight", None) for i in range(_SKIPS)]
    try:
        convolutions = []
        for weight in skips:
            if weight is None or weight.ndim != 4:
                raise KeyError("decoder.skip_conv_1 to 4")
            convolutions.append(nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False))
            convolutions[-1].load_state_dict({"weight": weight})
        vae.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CorruptFileError(f"{source.name}/{_VAE_FILE} is not Difix's autoencoder: {reason}") from error
    return vae, nn.ModuleList(convolutions)


def merge_lora(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Merge peft's LoRA weights into a state dict and return the result.

    `layer.base_layer.weight`, `layer.lora_A.<name>.weight` [r, ...] and `layer.lora_B.<name>.weight` become
    `layer.weight`. Layers may be linear or convolutional.
    """
    merged = {key.replace(".base_layer.", "."): value for key, value in state.items() if ".lora_" not in key}
    for key, a in state.items():
        if match := re.fullmatch(r"(.+)\.lora_A\.(\w+)\.weight", key):
            layer, b = match[1], state[f"{match[1]}.lora_B.{match[2]}.weight"]
            weight, scale = merged[f"{layer}.weight"], _LORA_SCALE / len(a)
            change = (b.flatten(1).float() @ a.flatten(1).float()).view_as(weight)
            merged[f"{layer}.weight"] = (weight.float() + scale * change).to(weight.dtype)
    return merged


@torch.no_grad()
def _embed(source: Source) -> Prompt:
    """Return the fixed prompt embedded by the text encoder of `source`, also in place of the unused null prompt."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer: Any = CLIPTokenizer.from_pretrained(source.location, subfolder="tokenizer")
    encoder: Any = CLIPTextModel.from_pretrained(source.location, subfolder="text_encoder")
    most = tokenizer.model_max_length
    ids = tokenizer(PROMPT, max_length=most, padding="max_length", truncation=True, return_tensors="pt").input_ids
    tokens = Embeddings(encoder(ids)[0].float())
    return Prompt(PROMPT, tokens, tokens)
