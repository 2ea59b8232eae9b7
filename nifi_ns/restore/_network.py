"""The interface of a network that a `Restorer` runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nifi_ns.diffusion import CompileMode


class OneStepNetwork(Protocol):
    """A network that restores images in one step. Images are float32 [B, 3, H, W] in [0, 1] on any device.

    Implemented by `Backbone` with its adapter phi_minus, and by `Difix`, which has no adapters.
    """

    @property
    def device(self) -> torch.device:
        """Device it runs on."""
        ...

    @property
    def latent_channels(self) -> int:
        """Channels of the latents and of the noise."""
        ...

    @property
    def downsampling(self) -> int:
        """Pixels per latent along a side."""
        ...

    @property
    def pixel_multiple(self) -> int:
        """Number of pixels that image sides must be a multiple of."""
        ...

    @property
    def max_side(self) -> int | None:
        """Largest image side in pixels; None for no limit."""
        ...

    def restore(self, images: Tensor, noise: Tensor, t0: float, attended_photos: Tensor | None = None) -> Tensor:
        """Return the restored images [B, 3, H, W], roughly in [0, 1] and not clamped.

        Args:
            images: the images to restore.
            noise: [1, C, h, w] or [B, C, h, w], added at t0; zeros for none.
            t0: timestep that the step starts from, in [0, 1000].
            attended_photos: [B, R, 3, H, W] photos of other cameras that the network attends to.
        """
        ...

    def autoencode(self, images: Tensor) -> Tensor:
        """Return the images [B, 3, H, W] after encoding and decoding, without a diffusion step."""
        ...

    def compile(self, mode: CompileMode) -> None:
        """Compile the network's parts with `torch.compile` on the first image of each size from now on.

        Raises:
            NifiError: if there is no C++ compiler.
        """
        ...


@dataclass(frozen=True)
class Deferred:
    """A network that is loaded on first use."""

    load: Callable[[], OneStepNetwork]
