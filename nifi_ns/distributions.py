"""Distances between the statistics of two images instead of their pixels. They reward plausible detail.

Both are zero for equal images and grow when detail is lost, added or of the wrong kind, but ignore the exact position
of, say, a blade of grass. They need no weights. An image of something else can score well, so read them together with
reference metrics.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 32
"""Minimum size of images, in pixels a side."""
_PATCH = 7
_PATCHES = 1 << 13  # maximum number of patches compared per level
_DIRECTIONS = 128


def sliced_wasserstein(image: Tensor, photo: Tensor, seed: int = 0) -> Tensor:
    """Return the sliced Wasserstein distance of 7x7 patches, the mean over Laplacian pyramids (Karras et al. 2018).

    Each level is in units of its standard deviation in the photo: a level without any detail counts 0.8.

    Args:
        image, photo: [1, 3, H, W] in [0, 1].
        seed: seed for the directions that patches are projected onto, and for the choice of patches.

    Returns:
        A scalar, differentiable in `image`.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(3 * _PATCH**2, _DIRECTIONS, generator=generator), dim=0).to(photo)
    distances = []
    for ours, theirs in zip(_laplacian(image), _laplacian(photo), strict=True):
        a, b = (F.unfold(level, _PATCH)[0].T for level in (ours, theirs))  # [patches, 147]
        if len(a) > _PATCHES:
            chosen = torch.randperm(len(a), generator=generator)[:_PATCHES].to(a.device)
            a, b = a[chosen], b[chosen]
        slices = [((patches - b.mean(dim=0)) @ directions).sort(dim=0).values for patches in (a, b)]
        spread = ((b - b.mean(dim=0)) @ directions).std().clamp_min(1e-4)
        distances.append((slices[0] - slices[1]).abs().mean() / spread)
    return torch.stack(distances).mean()


def spectrum_distance(image: Tensor, photo: Tensor) -> Tensor:
    """Return the mean difference, in dB, of radially averaged power spectra of luma over all non-zero frequencies.

    Args:
        image, photo: [1, 3, H, W] in [0, 1].

    Returns:
        A scalar, differentiable in `image`.
    """
    ours, theirs = _radial_power(image), _radial_power(photo)
    # power far below the resolution of 8 bits is not detail
    floor = 1e-7 * theirs.max() + 1e-12
    return (10 * ((ours + floor) / (theirs + floor)).log10()).abs().mean()


def _laplacian(image: Tensor) -> list[Tensor]:
    # from the finest level to the residual, which has at least 16 pixels a side
    kernel = torch.tensor([1.0, 4, 6, 4, 1], device=image.device) / 16
    kernel = (kernel[:, None] * kernel).expand(3, 1, 5, 5)
    levels = []
    while min(image.shape[-2:]) >= 32:
        low = F.conv2d(F.pad(image, [2] * 4, mode="reflect"), kernel, groups=3)
        levels.append(image - low)
        image = low[:, :, ::2, ::2]
    return [*levels, image]


def _radial_power(image: Tensor) -> Tensor:
    # [bins] mean power by spatial frequency, in steps of 1 / (shorter side), up to half a cycle per pixel
    height, width = image.shape[-2:]
    luma = (image[0] * image.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=0)
    window = torch.hann_window(height, device=image.device)[:, None] * torch.hann_window(width, device=image.device)
    power = torch.fft.rfft2((luma - luma.mean()) * window).abs().square()
    fy = torch.fft.fftfreq(height, device=image.device)[:, None]
    fx = torch.fft.rfftfreq(width, device=image.device)[None]
    side = min(height, width)
    bins = (torch.hypot(fy, fx) * side).round().long()
    last = math.floor(side / 2)
    kept = (bins >= 1) & (bins <= last)
    total = power.new_zeros(last + 1).index_add(0, bins[kept], power[kept])
    count = power.new_zeros(last + 1).index_add(0, bins[kept], torch.ones_like(power[kept]))
    return (total / count.clamp_min(1))[1:] / (height * width)
