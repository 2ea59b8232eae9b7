"""A small, fast decoder to replace a backbone's own: TAESD (github.com/madebyollin/taesd), loaded by diffusers."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nifi_ns.diffusion._sources import reading, resolve
from nifi_ns.diffusion.families import LatentScaling
from nifi_ns.errors import NifiError


class TinyDecoder(nn.Module):
    """The decoder of an AutoencoderTiny, distilled from a backbone's autoencoder."""

    def __init__(self, decoder: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self._decoder = decoder.requires_grad_(False).eval()
        self._scale = scale
        self._shift = shift

    @staticmethod
    def from_pretrained(name: str | Path, vae: Any, scaling: LatentScaling, downsampling: int) -> "TinyDecoder":
        """Load a folder or hub id, such as madebyollin/taesd (SD1.5, SD2, SD-Turbo) or madebyollin/taesd3 (SD3).

        Args:
            name: the folder or hub id.
            vae: the configuration of the backbone's autoencoder.
            scaling: how the backbone scales that autoencoder's latents.
            downsampling: pixels per latent of the backbone, along one side.

        Raises:
            NifiError: if it cannot be loaded, is no AutoencoderTiny, or its latents have other channels or sizes.
        """
        source = resolve(str(name), "decoder")
        with reading(str(name), "decoder"):
            from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

            kind = source.config("config.json").get("_class_name") if source.has("config.json") else None
            if kind != "AutoencoderTiny":
                raise NifiError(f"{name} holds no AutoencoderTiny, such as madebyollin/taesd3 for SD3")
            tiny: Any = AutoencoderTiny.from_pretrained(source.location, use_safetensors=True)
        own = tiny.config
        given = own.latent_channels, own.upsampling_scaling_factor ** (len(own.num_decoder_blocks) - 1)
        if given != (vae.latent_channels, downsampling):
            raise NifiError(
                f"the decoder {name} is for {given[0]} channels and {given[1]} pixels per latent, "
                f"the backbone has {vae.latent_channels} and {downsampling}: use the decoder made for it"
            )
        # It expects latents as diffusers' pipelines pass them to the network: (latents - shift_factor) *
        # scaling_factor. The backbone's are scaled by `scaling`. Both together are one factor and one summand.
        ratio = vae.scaling_factor / scaling.scale
        summand = vae.scaling_factor * (scaling.shift - (vae.shift_factor or 0.0))
        return TinyDecoder(tiny.decoder, ratio / own.scaling_factor, own.shift_factor + summand / own.scaling_factor)

    def forward(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, H, W], about [0, 1], of the backbone's latents [B, C, h, w]."""
        return self._decoder(latents * self._scale + self._shift) / 2 + 0.5
