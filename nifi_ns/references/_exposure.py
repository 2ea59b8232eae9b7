"""Exposure and white balance: the factors by which a photo is brighter than a render of the same view."""

import torch
import torch.nn.functional as F
from torch import Tensor

_SHRINK = 8
"""Side of the squares that are averaged first: an unsharp render still has about the right mean colours."""
_DARK, _BRIGHT = 0.02, 0.98
"""Values outside are treated as clipped."""
_TOLERANCE = 0.05
"""Difference of colours at which a pixel is considered to show something else."""
_ROUNDS = 4
_FURTHEST = 2.0
"""The largest factor; its inverse is the smallest. Larger ones have other causes."""
_DIFFERING = 0.03
"""Standard deviation of the factors' logarithms at which half of it is attributed to exposure."""
_SURE = 4.0
"""The square of the common factor has to exceed its variance by chance this many times."""


def fit_gains(photo: Tensor, render: Tensor) -> Tensor:
    """Fit the factors [N, 3, 1, 1] between the colours of `photo` and `render`, both [N, 3, H, W].

    Iteratively reweighted least squares: pixels that do not fit get less weight.
    """
    size = [max(1, side // _SHRINK) for side in photo.shape[-2:]]
    unclipped = ((photo > _DARK) & (photo < _BRIGHT)).all(dim=1, keepdim=True).to(photo)
    share = F.interpolate(unclipped, size, mode="area")
    photo, render = (F.interpolate(p * unclipped, size, mode="area") / (share + 1e-6) for p in (photo, render))
    weights, gain = share, torch.ones_like(photo[..., :1, :1])
    for _ in range(_ROUNDS):
        across = (weights * photo * render).sum(dim=(2, 3), keepdim=True)
        gain = (across + 1e-6) / ((weights * render.square()).sum(dim=(2, 3), keepdim=True) + 1e-6)
        gain = gain.clamp(1 / _FURTHEST, _FURTHEST)
        error = (photo - gain * render).square().mean(dim=1, keepdim=True)
        weights = share / (1 + error / _TOLERANCE**2).square()
    return gain


def shared_gains(gain: Tensor, weights: Tensor) -> Tensor:
    """Return the share of photos' gains that a corrected view keeps, [N, 3, 1, 1].

    Where gains differ by about a percent, all of it: they tell how the view itself would have been exposed. Where they
    differ more, only what they have in common, shrunk by what so few could share by chance (James & Stein 1961).

    Args:
        gain: [N, 3, 1, 1], one for each photo.
        weights: [N], how much each photo counts.
    """
    weights = (weights / (weights.sum() + 1e-9)).view(-1, 1, 1, 1)
    log = gain.log()
    mean = (weights * log).sum(dim=0, keepdim=True)
    spread = (log - log.mean(dim=0)).square().mean() * len(log) / max(1, len(log) - 1)
    chance = spread * weights.square().sum()
    common = mean * (1 - _SURE * chance / (mean.square().mean() + 1e-9)).clamp_min(0)
    differing = spread.square() / (spread.square() + _DIFFERING**4)
    return log.lerp(common, differing).exp()
