"""One step of restoration, and the interface to a diffusion model that it and the losses use."""

from typing import Protocol

import torch
from torch import Tensor

from nifi_ns.diffusion._adapters import AdapterName


class Denoiser(Protocol):
    """The part of `Backbone` used by one restoration step and the score-matching losses; timesteps [B], 0 to 1000."""

    def signal(self, t: Tensor) -> float | Tensor:
        """Return the factor a_t [B] of the image in the forward process."""
        ...

    def sigma(self, t: Tensor) -> float | Tensor:
        """Return the standard deviation s_t [B] of the noise in the forward process."""
        ...

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t = a_t x0 + s_t noise, all [B, C, h, w]."""
        ...

    def predict(
        self,
        x_t: Tensor,
        t: Tensor,
        adapter: AdapterName | None,
        guidance_scale: float = 1.0,
        num_views: int = 1,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """Return the network's output [B, C, h, w], in the network's own parameterization.

        Samples marked in `dropped` [B] get the null prompt. Self-attention attends across `num_views` samples in a row.
        """
        ...

    def to_x0(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """Return the clean latents that the output `out` implies."""
        ...

    def to_eps(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """Return the noise that the output `out` implies."""
        ...


class LatentBackbone(Denoiser, Protocol):
    """A denoiser together with its autoencoder."""

    def encode(self, images: Tensor, adapter: AdapterName | None = None) -> Tensor:
        """Return scaled latents [B, C, h, w] of images [B, 3, H, W] in [0, 1]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, H, W], about [0, 1], of scaled latents [B, C, h, w]."""
        ...


def encode_photos(backbone: LatentBackbone, photos: Tensor) -> Tensor:
    """Encode photos [B, R, 3, H, W] to latents [B, R, C, h, w], with no adapter: phi_minus is for degraded views."""
    return backbone.encode(photos.flatten(0, 1)).float().unflatten(0, photos.shape[:2])


def restore_latents(
    backbone: Denoiser, latents: Tensor, noise: Tensor, t0: float, attended_photos: Tensor | None = None
) -> Tensor:
    """Restore latents [B, C, h, w] of degraded views with one step of phi_minus from t0, and return z_hat.

    Args:
        backbone: the diffusion model.
        latents: the latents to restore.
        noise: added at t0, of the same shape or [1, C, h, w]; zeros for none.
        t0: the timestep, of 1000.
        attended_photos: [B, R, C, h, w] latents of photos of other cameras. They get the same noise as their view, so
            that the network runs at one noise level, and self-attention attends across both.
    """
    views = latents[:, None] if attended_photos is None else torch.cat([latents[:, None], attended_photos], dim=1)
    noise = noise[:, None].expand_as(views).flatten(0, 1)
    timestep = torch.full((len(noise),), float(t0), device=latents.device)
    x_t = backbone.add_noise(views.flatten(0, 1), noise, timestep)
    z_hat = backbone.to_x0(x_t, backbone.predict(x_t, timestep, "phi_minus", num_views=views.shape[1]), timestep)
    return z_hat[:: views.shape[1]]
