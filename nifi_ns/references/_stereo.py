"""Depth that photos agree on: plane sweeps (Collins 1996) from the rendered depth, then agreement between views.

A render of few gaussians has depth that is off by a few percent, which moves what another photo shows there by many
pixels. Two things mend it in turn. A sweep tries depths around the present one and takes those at which the photos show
the same. Agreement moves the depth to where other views' depths put the surface, if that reprojects to about the same
pixel; it carries depth from views that see a surface well to those that do not.
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
"""Pixels over which another view fades in from its border."""
_DECISIVENESS = 0.0015
"""Mean absolute difference of colours that makes one depth clearly better than another."""
_INERTIA = 0.1
"""How much the present depth has to say where other views have their own, relative to one of these."""


class Sighting(NamedTuple):
    """A photo, with what is known of it; or several as one (see `together`)."""

    view: View
    photo: Tensor
    """[N, 3, H, W]"""
    residual: Tensor
    """[N, 3, H, W]: the photo less its render."""
    depth: Tensor
    """[N, 1, H, W] along the optical axis; 0 where nothing is."""
    gain: Tensor
    """[N, 3, 1, 1]: the factors of exposure and white balance that were taken out of the photo."""


def together(sightings: Sequence[Sighting]) -> Sighting:
    """Several as one. If they differ in size, smaller ones are enlarged."""
    view = stack([sighting.view for sighting in sightings])
    size = (view.height, view.width)

    def joined(pictures: Sequence[Tensor]) -> Tensor:
        return torch.cat(
            [
                p if p.shape[-2:] == size else F.interpolate(p, size, mode="bilinear", align_corners=False)
                for p in pictures
            ]
        )

    _, photos, residuals, depths, gains = zip(*sightings, strict=True)
    return Sighting(view, joined(photos), joined(residuals), joined(depths), torch.cat(gains))


class Sweep(NamedTuple):
    """One pass over the depths around the present one."""

    reach: float
    """How far is searched to either side, relative to the depth."""
    window: int
    """Side, in pixels, of the squares whose colours are compared."""
    halved: bool = True
    """At half the resolution: photos smoothed that much hide less of the depth's error than they cost in time."""


@dataclass(frozen=True)
class StereoSettings:
    """How depth is corrected. The defaults serve scenes of any size: nothing here is in metres."""

    coarse: tuple[Sweep, ...] = (Sweep(0.08, 11), Sweep(0.02, 5))
    """Passes that start from the rendered depth."""
    fine: tuple[Sweep, ...] = (Sweep(0.03, 7), Sweep(0.01, 5, halved=False))
    """Passes after views have agreed."""
    steps: int = 5
    """Depths tried per pass, besides two of the neighbours."""
    rounds: int = 3
    """How often the depth is moved to where the other views' depths put the surface."""
    reprojection: float = 0.04
    """Share of the picture's longer side from which on another view's surface is taken to reproject elsewhere."""
    tolerance: float = 0.2
    """Relative difference of depths at which another view is taken to see something else."""


def sweep(
    view: View,
    image: Tensor,  # [H, W, 3]
    depth: Tensor,  # [H, W, 1]
    others: Sighting,
    settings: StereoSettings,
    over: Sweep,
    *,
    say: float,
) -> Tensor:
    """`depth` [H, W, 1], moved to where the others' photos agree with each other, and with `image` if it has a `say`.

    `image` is the view's own photo or, where there is none, its render, which has little to say.
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
    # besides a range around the depth: the nearest and the furthest of the neighbours, because at a silhouette the
    # expected depth lies between the two surfaces, on neither
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
        costs.append(spread + say * (mean - own).abs_().mean(dim=1, keepdim=True))
    cost = box_mean(torch.cat(costs), over.window)
    best = (torch.softmax(-cost / _DECISIVENESS, dim=0) * torch.cat(offsets)).sum(dim=0, keepdim=True)
    return depth * hwc(F.interpolate(best, depth.shape[:2], mode="bilinear", align_corners=False)).exp()


def agree(view: View, depth: Tensor, others: Sighting, settings: StereoSettings) -> Tensor:
    """`depth` [H, W, 1], moved to where the others' depths put the surface."""
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
        trust = torch.exp(-off) * _alike(z, there, settings.tolerance) * inside(at, others.view)
        depth = (_INERTIA * depth + (trust * theirs).sum(dim=0)) / (_INERTIA + trust.sum(dim=0))
    return depth


def same_surface(at: Tensor, z: Tensor, others: Sighting, tolerance: float, *, ramp: float = _BORDER) -> Tensor:
    """[N, H, W, 1] in [0, 1]: whether `others` show at `at` [N, H, W, 2] what lies at depth `z` before them.

    `z` is [N, H, W, 1]. Over `ramp` pixels from their borders they say so less and less.
    """
    return _alike(z, sample(others.depth, at).movedim(1, -1), tolerance) * inside(at, others.view, ramp=ramp)


def _alike(z: Tensor, there: Tensor, tolerance: float) -> Tensor:
    """In [0, 1]: whether depths are of one surface; where nothing is, 0."""
    distance = (z - there) / (tolerance * z.clamp_min(1e-6))
    return torch.exp(-distance.square()) * (z > 0) * (there > 0)


def box_mean(pictures: Tensor, side: int) -> Tensor:
    """`pictures` [N, C, H, W], each pixel the mean of a square of an odd number of pixels a `side`."""
    for size in ((side, 1), (1, side)):
        padding = (size[0] // 2, size[1] // 2)
        pictures = F.avg_pool2d(pictures, size, 1, padding, count_include_pad=False)
    return pictures


def chw(image: Tensor) -> Tensor:
    """[H, W, C] -> [1, C, H, W]."""
    return image.movedim(-1, 0)[None]


def hwc(image: Tensor) -> Tensor:
    """[1, C, H, W] -> [H, W, C]."""
    return image[0].movedim(0, -1)
