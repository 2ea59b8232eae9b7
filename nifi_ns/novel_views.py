"""Cameras where no photo was taken: between those of a capture, or on the way from them to where somebody will look."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from nifi_ns.views import View

_TURNED = 1.0
"""How many times the cameras' spread a camera counts as far when it looks the other way."""
_HALF_WAY = 0.5
"""Part of the way to a neighbour at which a camera is as far as can be from both."""


def stepped(view: View, other: View, part: float) -> View:
    """`view` moved and turned a part of the way to `other`; without a photo."""
    from scipy.spatial.transform import Rotation, Slerp

    ends = torch.stack([view.viewmat, other.viewmat]).double().cpu()
    turns = Slerp([0, 1], Rotation.from_matrix(ends[:, :3, :3].numpy()))
    rotation = torch.from_numpy(turns([part]).as_matrix()[0])
    centre = view.centre.double().cpu().lerp(other.centre.double().cpu(), part)
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ centre
    return replace(view, name=f"{view.name} moved", viewmat=viewmat.to(view.viewmat), image=None)


def between(views: Sequence[View], count: int, part: float) -> list[View]:
    """Up to `count` cameras between neighbouring ones: `part` of the way, in (0, 1], from a camera to half way.

    Every camera goes towards its nearest neighbour before any goes towards its second, and no pair is used twice.
    """
    pairs: dict[frozenset[int], tuple[int, int]] = {}
    neighbours = [_nearest(view, views) for view in views]
    for rank in range(1, len(views)):
        for i, nearest in enumerate(neighbours):
            pairs.setdefault(frozenset((i, nearest[rank])), (i, nearest[rank]))
    chosen = list(pairs.values())[: max(0, count)]
    return [stepped(views[i], views[j], part * _HALF_WAY) for i, j in chosen]


def towards(targets: Sequence[View], views: Sequence[View], part: float) -> list[View]:
    """For each target a camera `part` of the way, in (0, 1], from the nearest of `views`, with its lens and size."""
    return [stepped(views[_nearest(target, views)[0]], target, part) for target in targets]


def _nearest(view: View, views: Sequence[View]) -> list[int]:
    """Indices of `views`, those first that are taken nearest to `view` and look about the same way."""
    centres = torch.stack([other.centre for other in views])
    spread = (centres - centres.mean(dim=0)).norm(dim=1).max().clamp_min(1e-9)
    away = (centres - view.centre.to(centres)).norm(dim=1) / spread
    turned = (1 - torch.stack([other.viewmat[2, :3] for other in views]) @ view.viewmat[2, :3].to(centres)) / 2
    distance = away + _TURNED * turned
    return sorted(range(len(views)), key=lambda i: (views[i] is not view, float(distance[i])))
