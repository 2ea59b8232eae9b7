"""Depth refinement: plane sweeps (Collins 1996) around the rendered depth, and agreement between views.

The depth of a render of few gaussians is off by a few percent, which displaces what another photo shows there by many
pixels. Two steps refine it in turn. A sweep tries depths around the present one and prefers those at which the photos
agree in colour. Agreement moves the depth to the surface that other views' depths give, if it reprojects to about the
same pixel; this carries depth from views that see a surface well to views that do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nifi_ns.references._warping import epipolar, inside, pixels, sample, stack
from nifi_ns.views import View

_BORDER = 8.0
"""Width in pixels of the ramp over which another view's weight rises from its border."""
_TEMPERATURE = 0.0015
"""Temperature of the softmax over depths: a mean absolute colour difference that makes one depth clearly better."""
_INERTIA = 0.1
"""Weight of the present depth in the agreement step, relative to one other view."""


class ReferenceView(NamedTuple):
    """A photo with its camera, residual and depth; or several, stacked (see `stack_references`)."""

    view: View
    photo: Tensor
    """[N, 3, H, W]"""
    residual: Tensor
    """[N, 3, H, W], photo minus render."""
    depth: Tensor
    """[N, 1, H, W] along the optical axis; 0 where nothing is."""
    gain: Tensor
    """[N, 3, 1, 1], the exposure and white balance factors that were divided out of the photo."""


def stack_references(references: Sequence[ReferenceView]) -> ReferenceView:
    """Stack references along the batch dimension; smaller pictures are enlarged to the largest size."""
    view = stack([reference.view for reference in references])
    size = (view.height, view.width)

    def joined(pictures: Sequence[Tensor]) -> Tensor:
        return torch.cat(
            [
                p if p.shape[-2:] == size else F.interpolate(p, size, mode="bilinear", align_corners=False)
                for p in pictures
            ]
        )

    _, photos, residuals, depths, gains = zip(*references, strict=True)
    return ReferenceView(view, joined(photos), joined(residuals), joined(depths), torch.cat(gains))


class Sweep(NamedTuple):
    """One pass over depths around the present one."""

    reach: float
    """Search range to either side, relative to the depth."""
    window: int
    """Side in pixels of the squares over which colour differences are averaged."""
    halved: bool = True
    """Whether the pass runs at half the resolution, which is faster and loses little."""


@dataclass(frozen=True)
class StereoSettings:
    """How depth is refined. Nothing here is in scene units, so the defaults suit any scene."""

    coarse: tuple[Sweep, ...] = (Sweep(0.08, 11), Sweep(0.02, 5))
    """Passes from the rendered depth."""
    fine: tuple[Sweep, ...] = (Sweep(0.03, 7), Sweep(0.01, 5, halved=False))
    """Passes after the agreement step."""
    steps: int = 5
    """Depths tried per pass, besides two taken from neighbouring pixels."""
    rounds: int = 3
    """Iterations of the agreement step."""
    reprojection: float = 0.04
    """Reprojection distance at which another view's surface loses most of its weight, as a share of the longer side."""
    tolerance: float = 0.2
    """Relative difference of depths at which two views are considered to see different surfaces."""


def sweep(
    view: View,
    image: Tensor,  # [H, W, 3]
    depth: Tensor,  # [H, W, 1]
    others: ReferenceView,
    settings: StereoSettings,
    over: Sweep,
    *,
    image_weight: float,
) -> Tensor:
    """Return `depth`, [H, W, 1], moved to where the others' photos agree with each other and with `image`.

    `image` is the view's own photo with a high `image_weight`, or else its render with a low one.
    """
    shrink = 2 if over.halved else 1
    height, width = max(1, view.height // shrink), max(1, view.width // shrink)
    base = F.interpolate(chw(depth), (height, width), mode="bilinear", align_corners=False)
    log_depth = base.clamp_min(1e-6).log()
    own, photos = chw(image), others.photo
    if over.halved:
        own = F.interpolate(own, (height, width), mode="area")
        photos = F.interpolate(photos, scale_factor=0.5, mode="area")
    lines = epipolar(view, others.view, pixels((height, width), depth.device))
    base = hwc(base)
    weights = same_surface(*lines.project(base), others, settings.tolerance).movedim(-1, 1) + 1e-4
    weights = weights / weights.sum(dim=0)
    # besides a range around the depth, the nearest and furthest neighbours are tried: at a silhouette the expected
    # depth lies between the two surfaces, on neither
    offsets = [
        torch.full_like(log_depth, step) for step in torch.linspace(-over.reach, over.reach, settings.steps).tolist()
    ]
    offsets.append(F.max_pool2d(log_depth, 5, 1, 2) - log_depth)
    offsets.append(-F.max_pool2d(-log_depth, 5, 1, 2) - log_depth)
    costs = []
    for offset in offsets:
        seen = sample(photos, lines.project(base * hwc(offset).exp())[0])
        mean = (weights * seen).sum(dim=0, keepdim=True)
        spread = (weights * (seen - mean).abs_().mean(dim=1, keepdim=True)).sum(dim=0, keepdim=True)
        costs.append(spread + image_weight * (mean - own).abs_().mean(dim=1, keepdim=True))
    cost = box_mean(torch.cat(costs), over.window)
    best = (torch.softmax(-cost / _TEMPERATURE, dim=0) * torch.cat(offsets)).sum(dim=0, keepdim=True)
    return depth * hwc(F.interpolate(best, depth.shape[:2], mode="bilinear", align_corners=False)).exp()


def agree(view: View, depth: Tensor, others: ReferenceView, settings: StereoSettings) -> Tensor:
    """Return `depth`, [H, W, 1], moved to the surface that the others' depths give."""
    here = pixels(depth.shape[:2], depth.device)
    longer = max(view.height, view.width)
    near = (2 * settings.reprojection * longer / view.width, 2 * settings.reprojection * longer / view.height)
    lines = epipolar(view, others.view, here)
    for _ in range(settings.rounds):
        at, z = lines.project(depth)
        there = sample(others.depth, at).movedim(1, -1)
        back, theirs = epipolar(others.view, view, at).project(there)
        off = back - here
        off = (off[..., :1] / near[0]).square() + (off[..., 1:] / near[1]).square()
        trust = torch.exp(-off) * _same_depth(z, there, settings.tolerance) * inside(at, others.view)
        depth = (_INERTIA * depth + (trust * theirs).sum(dim=0)) / (_INERTIA + trust.sum(dim=0))
    return depth


def same_surface(at: Tensor, z: Tensor, others: ReferenceView, tolerance: float, *, ramp: float = _BORDER) -> Tensor:
    """Return whether `others` show, at positions `at`, a surface at depth `z` in their own views.

    Args:
        at: [N, H, W, 2] positions in [-1, 1].
        z: [N, H, W, 1] depths along the others' optical axes.
        others: stacked references.
        tolerance: relative difference of depths at which the result has dropped to 1/e.
        ramp: width in pixels over which the result falls to 0 at their borders.

    Returns:
        [N, H, W, 1] in [0, 1].
    """
    return _same_depth(z, sample(others.depth, at).movedim(1, -1), tolerance) * inside(at, others.view, ramp=ramp)


def _same_depth(z: Tensor, there: Tensor, tolerance: float) -> Tensor:
    """Return whether two depths belong to one surface, in [0, 1]; 0 where nothing is."""
    distance = (z - there) / (tolerance * z.clamp_min(1e-6))
    return torch.exp(-distance.square()) * (z > 0) * (there > 0)


def box_mean(pictures: Tensor, side: int) -> Tensor:
    """Average `pictures`, [N, C, H, W], over squares with an odd `side` in pixels."""
    for size in ((side, 1), (1, side)):
        padding = (size[0] // 2, size[1] // 2)
        pictures = F.avg_pool2d(pictures, size, 1, padding, count_include_pad=False)
    return pictures


def chw(image: Tensor) -> Tensor:
    """Convert [H, W, C] to [1, C, H, W]."""
    return image.movedim(-1, 0)[None]


def hwc(image: Tensor) -> Tensor:
    """Convert [1, C, H, W] to [H, W, C]."""
    return image[0].movedim(0, -1)
