"""A small, fast decoder in place of a backbone's: TAESD (github.com/madebyollin/taesd), by diffusers."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nifi_ns.diffusion._sources import reading, resolve
from nifi_ns.errors import NifiError


class TinyDecoder(nn.Module):
    """The decoder of an AutoencoderTiny that was distilled from a backbone's autoencoder."""

    def __init__(self, decoder: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self._decoder = decoder.requires_grad_(False).eval()
        self._scale = scale
        self._shift = shift

    @staticmethod
    def from_pretrained(name: str | Path, vae: Any, downsampling: int) -> "TinyDecoder":
        """Load a folder or hub id, such as madebyollin/taesd (SD1.5, SD2, SD-Turbo) or madebyollin/taesd3 (SD3).

        Args:
            name: where it is.
            vae: the configuration of the backbone's autoencoder.
            downsampling: pixels per latent of the backbone, along a side.

        Raises:
            NifiError: if it cannot be had, is no AutoencoderTiny, or is for latents of other channels or size.
        """
        source = resolve(str(name), "decoder")
        with reading(str(name), "decoder"):
            from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

            kind = source.config("config.json").get("_class_name") if source.has("config.json") else None
            if kind != "AutoencoderTiny":
                raise NifiError(f"{name} holds no AutoencoderTiny, such as madebyollin/taesd3 is for SD3")
            tiny: Any = AutoencoderTiny.from_pretrained(source.location, use_safetensors=True)
        own = tiny.config
        given = own.latent_channels, own.upsampling_scaling_factor ** (len(own.num_decoder_blocks) - 1)
        if given != (vae.latent_channels, downsampling):
            raise NifiError(
                f"the decoder {name} is for {given[0]} channels and {given[1]} pixels per latent, "
                f"the backbone has {vae.latent_channels} and {downsampling}: give the one made for it"
            )
        # It takes latents as the model's network does in diffusers: shifted (which ours are not), then scaled.
        shift = vae.scaling_factor * (vae.shift_factor or 0)
        return TinyDecoder(tiny.decoder, 1 / own.scaling_factor, own.shift_factor - shift / own.scaling_factor)

    def forward(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W], about [0, 1], of latents [B, C, h, w] as the backbone has them."""
        return self._decoder(latents * self._scale + self._shift) / 2 + 0.5
