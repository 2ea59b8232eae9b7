"""Consistency between views: a view is warped into another by the splats' depth, and compared where both see it.

A restorer that invents new detail in each frame scores worse than its input, however sharp its frames are.
"""

import math

import torch
from torch import Tensor

from nifi_ns.references._warping import epipolar, inside, pixels, sample
from nifi_ns.views import View

FRAME = 0.05
"""Share of the way to a neighbouring view that stands for one frame of a video."""
_OCCLUDED = 0.03  # relative difference of depths above which two pixels show different surfaces


def consistency(
    view: View, picture: Tensor, depth: Tensor, other: View, other_picture: Tensor, other_depth: Tensor
) -> float | None:
    """Return the PSNR, in dB, of `other_picture` warped into `view` against `picture`, where both show one surface.

    Args:
        view, other: the cameras.
        picture, other_picture: [H, W, 3] in [0, 1].
        depth, other_depth: [H, W, 1] along the optical axis, 0 where nothing is.

    Returns:
        None if both see less than a hundredth of the pixels.
    """
    at, expected = epipolar(view, other, pixels(depth.shape[:2], depth.device)).project(depth)
    there = torch.cat([other_picture, other_depth], dim=-1).movedim(-1, 0)[None]
    warped = sample(there, at[None])[0].movedim(0, -1)
    seen = (depth > 0) & (expected > 0) & (inside(at, other) > 0)
    seen &= (warped[..., 3:] - expected).abs() < _OCCLUDED * expected
    if seen.float().mean() < 0.01:
        return None
    error = (warped[..., :3] - picture).square().mean(dim=-1, keepdim=True)[seen].mean()
    return -10 * math.log10(max(float(error), 1e-10))
