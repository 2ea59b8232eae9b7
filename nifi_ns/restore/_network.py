"""What a `Restorer` needs of the network that it runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nifi_ns.diffusion import CompileMode


class OneStepNetwork(Protocol):
    """A network that restores images in one step. Images are [B, 3, H, W] in [0, 1], float32, on any device.

    `Backbone` is one, with its adapter phi_minus; `Difix` is another, which has no adapters.
    """

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    @property
    def latent_channels(self) -> int:
        """Channels of its latents, and so of the noise that it is given."""
        ...

    @property
    def downsampling(self) -> int:
        """Pixels per latent, along a side."""
        ...

    @property
    def pixel_multiple(self) -> int:
        """Image sides must be a multiple of this."""
        ...

    @property
    def max_side(self) -> int | None:
        """The largest image side in pixels that it accepts; None for no limit."""
        ...

    def restore(self, images: Tensor, noise: Tensor, t0: float, attended_photos: Tensor | None = None) -> Tensor:
        """Return the restored images [B, 3, H, W], about [0, 1] and not clamped.

        Args:
            images: what to restore.
            noise: [1, C, h, w] or [B, C, h, w], added at t0; zeros for none.
            t0: the timestep, of 1000, that the step starts from.
            attended_photos: [B, R, 3, H, W] photos of other cameras that the network sees beside the images.
        """
        ...

    def autoencode(self, images: Tensor) -> Tensor:
        """Return the images [B, 3, H, W] as its autoencoder gives them back, without any step."""
        ...

    def compile(self, mode: CompileMode) -> None:
        """From now on, compile its parts by `torch.compile` for each new size of image.

        Raises:
            NifiError: if there is no C++ compiler.
        """
        ...


@dataclass(frozen=True)
class Deferred:
    """A network that is loaded when it is first needed."""

    load: Callable[[], OneStepNetwork]
