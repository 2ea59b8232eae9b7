"""Exposure and white balance: by what factors a photo is brighter than another picture of the same."""

import torch
import torch.nn.functional as F
from torch import Tensor

_SHRINK = 8
"""Pixels a side that are averaged first: a render that is not sharp has about the right colours."""
_DARK, _BRIGHT = 0.02, 0.98
"""Values outside are taken for clipped."""
_TOLERANCE = 0.05
"""Difference of colours at which a pixel is taken to show something else."""
_ROUNDS = 4
_FURTHEST = 2.0
"""The largest factor, and its inverse the smallest: beyond it, something else is wrong."""
_DIFFERING = 0.03
"""Standard deviation of the factors' logarithms at which half of it is taken for differences of exposure."""
_SURE = 4.0
"""How many times its variance by chance the square of what several have in common has to be."""


def fit_gains(photo: Tensor, render: Tensor) -> Tensor:
    """[N, 3, 1, 1]: the factors by which `photo` [N, 3, H, W] has other colours than `render`, the same of it.

    Least squares, with less weight for pixels that do not fit.
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


def kept_gains(gain: Tensor, weights: Tensor) -> Tensor:
    """[N, 3, 1, 1]: what a view is to have of the gains [N, 3, 1, 1] of photos that count as much as `weights` [N].

    All of it where they differ by a percent or so: there they tell how the view itself would have been exposed. Where
    they differ by more: what they have in common, if that is more than the chance of so few (compare James & Stein
    1961).
    """
    weights = (weights / (weights.sum() + 1e-9)).view(-1, 1, 1, 1)
    log = gain.log()
    mean = (weights * log).sum(dim=0, keepdim=True)
    spread = (log - log.mean(dim=0)).square().mean() * len(log) / max(1, len(log) - 1)
    chance = spread * weights.square().sum()
    common = mean * (1 - _SURE * chance / (mean.square().mean() + 1e-9)).clamp_min(0)
    differing = spread.square() / (spread.square() + _DIFFERING**4)
    return log.lerp(common, differing).exp()
