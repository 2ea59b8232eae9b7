"""Difix (Wu et al. 2025), NVIDIA's one-step fixer of rendered views, with the weights that its users have.

SD-Turbo's U-Net, trained whole; its autoencoder, whose decoder also sees what the encoder saw, through four 1x1
convolutions (and has LoRA weights, which are merged as they are read); no noise at t0 = 199; and, in the variant with
references, self-attention that sees photos of other cameras beside the view. The weights (`nvidia/difix`,
`nvidia/difix_ref`) are under a licence that excludes commercial use; none of them, and nothing of their code, is here.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nifi_ns.diffusion import (
    PROMPT_FILE,
    Backbone,
    Embeddings,
    Prompt,
    Source,
    StableDiffusion,
    placement,
    reading,
    resolve,
)
from nifi_ns.errors import CorruptFileError, NifiError

T0 = 199
PROMPT = "remove degradation"
_PIPELINE = "DifixPipeline"
_VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
_SKIPS = 4
_LORA_SCALE = 8.0
"""peft's default lora_alpha, which the public descriptions of the training leave as it is; over the rank."""


def is_difix(name: str | Path) -> bool:
    """Whether `name` is a folder or hub id of Difix: one whose `model_index.json` says so.

    Raises:
        NifiError: if it looks like a hub id, and the hub cannot be reached or does not give it.
    """
    if not Path(name).is_dir() and str(name).count("/") != 1:
        return False
    with reading(str(name), "restorer"):
        source = resolve(str(name), "restorer")
        return source.has("model_index.json") and source.config("model_index.json").get("_class_name") == _PIPELINE


class SkipAutoencoder(nn.Module):
    """A Stable Diffusion autoencoder whose decoder also gets the inputs of the encoder's blocks, coarsest first."""

    def __init__(self, vae: Any, skips: nn.ModuleList) -> None:
        """`skips`: a 1x1 convolution for each block of the decoder."""
        super().__init__()
        self.vae: Any = vae
        self.skips = skips

    @property
    def config(self) -> Any:
        """The autoencoder's."""
        return self.vae.config

    def encode(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Of pixels [B, 3, H, W] in [-1, 1]: the posterior's mode, unscaled, and what the decoder is to see."""
        encoder = self.vae.encoder
        x, seen = encoder.conv_in(pixels), []
        for block in encoder.down_blocks:
            seen.append(x)
            x = block(x)
        x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(x))))
        if self.vae.quant_conv is not None:
            x = self.vae.quant_conv(x)
        return x.chunk(2, dim=1)[0], seen

    def decode(self, latents: Tensor, seen: list[Tensor]) -> Tensor:
        """Pixels [B, 3, H, W], about [-1, 1], of unscaled latents and of what the encoder saw."""
        decoder = self.vae.decoder
        x = latents if self.vae.post_quant_conv is None else self.vae.post_quant_conv(latents)
        x = decoder.mid_block(decoder.conv_in(x))
        for block, skip, more in zip(decoder.up_blocks, self.skips, reversed(seen), strict=True):
            x = block(x + skip(more))
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))


class Difix(Backbone):
    """Difix's network and autoencoder. It has no adapters: `restore` is all of it."""

    def __init__(
        self, name: str, family: StableDiffusion, vae: SkipAutoencoder, prompt: Prompt, device: torch.device, dtype: Any
    ) -> None:
        super().__init__(name, family, vae.vae, prompt, device=device, dtype=dtype)
        self._skipping = vae.to(device).eval()

    @staticmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        name: str | Path, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Difix":
        """Load `nvidia/difix`, `nvidia/difix_ref` or a folder of their layout.

        Args:
            name: what to load: unet, vae, scheduler, text_encoder and tokenizer, in diffusers' subfolders.
            device: default: CUDA if there is a GPU, else the CPU.
            dtype: of the weights; default: bfloat16 on CUDA, float32 on the CPU.

        Raises:
            NifiError: if it cannot be found, reached or read, or is damaged (CorruptFileError).
        """
        device, dtype = placement(device, dtype)
        source = resolve(str(name))
        with reading(source.name):
            family = StableDiffusion.load(source.location, dtype)
            vae = _load_autoencoder(source).to(dtype)
            prompt = Prompt.load(source.file(PROMPT_FILE)) if source.has(PROMPT_FILE) else _embed(source)
        return Difix(source.name, family, vae, prompt, device, dtype)

    def use_decoder(self, name: str | Path) -> None:
        """Refused: no small autoencoder sees what the encoder saw."""
        raise NifiError(f"Difix decodes by its own autoencoder: leave the decoder {name} away")

    def restore(self, images: Tensor, noise: Tensor, t0: float = T0, attended_photos: Tensor | None = None) -> Tensor:
        """Fixed views [B, 3, H, W], about [0, 1], of such; `attended_photos` [B, R, 3, H, W] are of other cameras.

        It was trained with `noise` of zeros and on latents that are not scaled down as those with noise are.
        """
        views = images[:, None] if attended_photos is None else torch.cat([images[:, None], attended_photos], dim=1)
        batch, count = views.shape[:2]
        with self._lock:
            latents, seen = self._skipping.encode((views.flatten(0, 1) * 2 - 1).to(self.device, self.dtype))
            z = latents.float() * self.vae.config.scaling_factor
            x_t = z + self.sigma(t0) * noise[:, None].expand(batch, count, *z.shape[1:]).flatten(0, 1)
            x_0 = self.to_x0(x_t, self.predict(x_t, t0, None, views=count), t0)
            first = x_0[::count] / self.vae.config.scaling_factor
            return self._skipping.decode(first.to(self.dtype), [x[::count] for x in seen]).float() / 2 + 0.5


def _load_autoencoder(source: Source) -> SkipAutoencoder:
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
    return SkipAutoencoder(vae, nn.ModuleList(convolutions)).requires_grad_(False)


def merge_lora(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights without adapters, of a state dict in which peft put some layers beside LoRA weights.

    `layer.base_layer.weight` and `layer.lora_A.<name>.weight` [r, ...], `layer.lora_B.<name>.weight` become
    `layer.weight`, of linear and convolutional layers.
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
    """The fixed prompt by the text encoder of `source`; the null prompt is not used."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer: Any = CLIPTokenizer.from_pretrained(source.location, subfolder="tokenizer")
    encoder: Any = CLIPTextModel.from_pretrained(source.location, subfolder="text_encoder")
    most = tokenizer.model_max_length
    ids = tokenizer(PROMPT, max_length=most, padding="max_length", truncation=True, return_tensors="pt").input_ids
    tokens = Embeddings(encoder(ids)[0].float())
    return Prompt(PROMPT, tokens, tokens)
