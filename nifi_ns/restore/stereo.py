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

from nifi_ns.restore.warping import epipolar, inside, lift, pixels, sample
from nifi_ns.views import View

_BORDER = 8.0
"""Pixels over which another view fades in from its border."""
_DECISIVENESS = 0.0015
"""Mean absolute difference of colours that makes one depth clearly better than another."""
_INERTIA = 0.1
"""How much the present depth has to say where other views have their own, relative to one of these."""


class Sighting(NamedTuple):
    """A photo, with what is known of it."""

    view: View
    photo: Tensor
    """[1, 3, H, W]"""
    residual: Tensor
    """[1, 3, H, W]: the photo less its render."""
    depth: Tensor
    """[1, 1, H, W] along the optical axis; 0 where nothing is."""


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
    others: Sequence[Sighting],
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
    own = F.interpolate(chw(image), (height, width), mode="area")[0]
    photos = [F.interpolate(other.photo, scale_factor=1 / shrink, mode="area") for other in others]
    lines = [epipolar(view, other.view, height, width) for other in others]
    base = base[0].movedim(0, -1)
    weights = [
        same_surface(*line.project(base), other, settings.tolerance)[..., 0] + 1e-4
        for line, other in zip(lines, others, strict=True)
    ]
    weights = torch.stack(weights)[:, None]
    weights = weights / weights.sum(dim=0)
    # besides a range around the depth: the nearest and the furthest of the neighbours, because at a silhouette the
    # expected depth lies between the two surfaces, on neither
    offsets = [
        log_depth.new_full((1, height, width), step)
        for step in torch.linspace(-over.reach, over.reach, settings.steps).tolist()
    ]
    offsets.append((F.max_pool2d(log_depth, 5, 1, 2) - log_depth)[0])
    offsets.append((-F.max_pool2d(-log_depth, 5, 1, 2) - log_depth)[0])
    costs = []
    for offset in offsets:
        z = base * offset.movedim(0, -1).exp()
        seen = torch.stack(
            [sample(p, line.project(z)[0], o.view) for p, line, o in zip(photos, lines, others, strict=True)]
        )
        mean = (weights * seen).sum(dim=0)
        spread = (weights * (seen - mean).abs()).sum(dim=0)
        costs.append((spread + say * (mean - own).abs()).mean(dim=0, keepdim=True))
    cost = F.avg_pool2d(torch.stack(costs), over.window, 1, over.window // 2, count_include_pad=False)
    best = (torch.softmax(-cost / _DECISIVENESS, dim=0) * torch.stack(offsets)).sum(dim=0, keepdim=True)
    best = F.interpolate(best, depth.shape[:2], mode="bilinear", align_corners=False)[0].movedim(0, -1)
    return depth * best.exp()


def agree(view: View, depth: Tensor, others: Sequence[Sighting], settings: StereoSettings) -> Tensor:
    """`depth` [H, W, 1], moved to where the others' depths put the surface."""
    here = pixels(view, view.height, view.width)
    near = settings.reprojection * max(view.height, view.width)
    for _ in range(settings.rounds):
        total, weight = _INERTIA * depth, torch.full_like(depth, _INERTIA)
        for other in others:
            at, z = epipolar(view, other.view, view.height, view.width).project(depth)
            points = lift(other.view, sample(other.depth, at, other.view).movedim(0, -1), at)
            theirs = points @ view.viewmat[:3, :3].T + view.viewmat[:3, 3]
            back = (theirs @ view.K.T)[..., :2] / theirs[..., 2:].clamp_min(1e-6)
            off = (back - here).square().sum(dim=-1, keepdim=True)
            trust = torch.exp(-off / near**2) * same_surface(at, z, other, settings.tolerance, ramp=1.0)
            total, weight = total + trust * theirs[..., 2:], weight + trust
        depth = total / weight
    return depth


def same_surface(at: Tensor, z: Tensor, other: Sighting, tolerance: float, *, ramp: float = _BORDER) -> Tensor:
    """[H, W, 1] in [0, 1]: whether `other` shows at pixels `at` [H, W, 2] what lies at depth `z` [H, W, 1] before it.

    Over `ramp` pixels from its border it says so less and less.
    """
    there = sample(other.depth, at, other.view).movedim(0, -1)
    distance = (z - there) / (tolerance * z.clamp_min(1e-6))
    return torch.exp(-distance.square()) * (z > 0) * (there > 0) * inside(at, other.view, ramp=ramp)


def chw(image: Tensor) -> Tensor:
    """[H, W, C] -> [1, C, H, W]."""
    return image.movedim(-1, 0)[None]


def hwc(image: Tensor) -> Tensor:
    """[1, C, H, W] -> [H, W, C]."""
    return image[0].movedim(0, -1)
