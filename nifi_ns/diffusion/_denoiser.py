"""What one step of restoration needs of a diffusion model, and the step."""

from typing import Literal, Protocol

import torch
from torch import Tensor

Adapter = Literal["phi_minus", "phi_plus"]


class Denoiser(Protocol):
    """What the score-matching terms need of `backbone.Backbone`; timesteps are [B] in 0..1000."""

    def signal(self, t: Tensor) -> float | Tensor:
        """a_t of the forward process, [B]."""
        ...

    def sigma(self, t: Tensor) -> float | Tensor:
        """s_t of the forward process, [B]."""
        ...

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of the forward process."""
        ...

    def predict(
        self,
        x_t: Tensor,
        t: Tensor,
        adapter: Adapter | None,
        guidance_scale: float = 1.0,
        views: int = 1,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """The network's output, whatever it predicts; of the null prompt for samples that `dropped` [B] says.

        Attention sees so many `views`, samples that follow one another, at once.
        """
        ...

    def to_x0(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """The clean estimate of `out`."""
        ...

    def to_eps(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """The predicted noise of `out`."""
        ...


class LatentBackbone(Denoiser, Protocol):
    """A denoiser of an autoencoder's latents."""

    def encode(self, images: Tensor, adapter: Adapter | None = None) -> Tensor:
        """[B, 3, H, W] in [0, 1] to scaled latents."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents to [B, 3, H, W], about [0, 1]."""
        ...


def encode_views(backbone: LatentBackbone, images: Tensor) -> Tensor:
    """Latents [B, R, C, h, w] of photos [B, R, 3, H, W] by the frozen encoder: phi-'s is for degraded views."""
    return backbone.encode(images.flatten(0, 1)).float().unflatten(0, images.shape[:2])


def restore_latents(
    backbone: Denoiser, latents: Tensor, noise: Tensor, t0: float, attended_photos: Tensor | None = None
) -> Tensor:
    """One step of phi- from t0: latents of degraded views to z_hat, both [B, C, h, w].

    Args:
        backbone: the diffusion model.
        latents: what to restore.
        noise: added at t0, of the same shape or [1, C, h, w]; zeros for none.
        t0: the timestep, of 1000.
        attended_photos: [B, R, C, h, w] latents of photos of other cameras. They are noised alike, for the network to
            see all of them at one noise level, and attention joins them with their view.
    """
    views = latents[:, None] if attended_photos is None else torch.cat([latents[:, None], attended_photos], dim=1)
    noise = noise[:, None].expand_as(views).flatten(0, 1)
    timestep = torch.full((len(noise),), float(t0), device=latents.device)
    x_t = backbone.add_noise(views.flatten(0, 1), noise, timestep)
    z_hat = backbone.to_x0(x_t, backbone.predict(x_t, timestep, "phi_minus", views=views.shape[1]), timestep)
    return z_hat[:: views.shape[1]]
