"""The frozen autoencoder of a backbone: images to scaled latents and back, with adapters of its encoder."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nifi_ns.diffusion._adapters import AdapterName, Adapters
from nifi_ns.diffusion._decoders import TinyDecoder
from nifi_ns.diffusion.families import Family


class Autoencoder:
    """A diffusers autoencoder with `Backbone`'s conventions: images in [0, 1], latents scaled for the network."""

    def __init__(self, vae: nn.Module, family: Family, device: torch.device, dtype: torch.dtype) -> None:
        self.vae: Any = vae.to(device).eval()
        self._placed = {"device": device, "dtype": dtype}
        self.scaling = family.latent_scaling(self.vae.config)
        self.adapters = Adapters(vae, family.vae_lora_targets, "vae")
        self._decoder: TinyDecoder | None = None

    @property
    def latent_channels(self) -> int:
        """Number of latent channels C."""
        return self.vae.config.latent_channels

    @property
    def downsampling(self) -> int:
        """Pixels per latent, along one side."""
        return self._patch * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def _patch(self) -> int:
        """Side of the pixel patches that are the autoencoder's input channels: 1 (pixels), but 4 for nifi-tiny."""
        return math.isqrt(self.vae.config.in_channels // 3)

    @property
    def modules(self) -> tuple[nn.Module, nn.Module]:
        """The encoder, and the decoder in use."""
        return self.vae.encoder, self._decoder or self.vae.decoder

    def encode(self, images: Tensor, adapter: AdapterName | None = None) -> Tensor:
        """Return latents [B, C, h, w], float32, of images [B, 3, H, W]: the posterior's mode, scaled."""
        self.adapters.use(adapter)
        pixels = F.pixel_unshuffle(images.to(**self._placed) * 2 - 1, self._patch)
        return self.scaling.apply(self.vae.encode(pixels).latent_dist.mode().float())

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, H, W], float32, about [0, 1], of latents [B, C, h, w]."""
        if self._decoder is not None:
            return self._decoder(latents.to(**self._placed)).float()
        unscaled = self.scaling.undo(latents).to(**self._placed)
        return F.pixel_shuffle(self.vae.decode(unscaled, return_dict=False)[0], self._patch).float() / 2 + 0.5

    def use_decoder(self, name: str | Path) -> None:
        """Decode with the `TinyDecoder` in the folder or hub repository `name` from now on.

        Raises:
            NifiError: if it cannot be loaded, or is for other latents.
        """
        decoder = TinyDecoder.from_pretrained(name, self.vae.config, self.scaling, self.downsampling)
        self._decoder = decoder.to(**self._placed)
