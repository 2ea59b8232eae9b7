"""Novel views: cameras between those of a capture, or on the way from them to target cameras."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nifi_ns.views import View

_TURNED = 1.0
"""Distance, in units of the cameras' extent, that a turn by 180 degrees counts as."""
_HALF_WAY = 0.5
"""Fraction of the way between two cameras that is farthest from both."""


def stepped(view: View, other: View, part: float) -> View:
    """Return `view` without its photo, moved and turned a fraction `part` of the way to `other`."""
    from scipy.spatial.transform import Rotation, Slerp

    ends = torch.stack([view.viewmat, other.viewmat]).double().cpu()
    turns = Slerp([0, 1], Rotation.from_matrix(ends[:, :3, :3].numpy()))
    rotation = torch.from_numpy(turns([part]).as_matrix()[0])
    centre = view.centre.double().cpu().lerp(other.centre.double().cpu(), part)
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ centre
    return replace(view, name=f"{view.name} moved", viewmat=viewmat.to(view.viewmat), image=None)


def between(views: Sequence[View], count: int, part: float) -> list[View]:
    """Return up to `count` cameras between neighbouring views, at `part` in (0, 1] of the way to the middle.

    All views are paired with their nearest neighbour before any is paired with its second. No pair is used twice.
    """
    if count < 1 or len(views) < 2:
        return []
    cameras = [replace(view, image=None) for view in views]  # a sequence may load photos on each access
    nearest = _apart(cameras, cameras).fill_diagonal_(-1).argsort(dim=1, stable=True).tolist()
    pairs: dict[frozenset[int], tuple[int, int]] = {}
    for rank in range(1, len(cameras)):
        for i, others in enumerate(nearest):
            pairs.setdefault(frozenset((i, others[rank])), (i, others[rank]))
        if len(pairs) >= count:
            break
    return [stepped(cameras[i], cameras[j], part * _HALF_WAY) for i, j in list(pairs.values())[:count]]


def towards(targets: Sequence[View], views: Sequence[View], part: float) -> list[View]:
    """Return, for each target, the nearest of `views` moved `part` in (0, 1] of the way to the target."""
    nearest = _apart(targets, views).argmin(dim=1).tolist()
    return [stepped(views[i], target, part) for i, target in zip(nearest, targets, strict=True)]


def camera_distances(centres: Tensor, axes: Tensor, other_centres: Tensor, other_axes: Tensor) -> Tensor:
    """Return the distances [N, M] of cameras from other cameras, in units of the others' extent, plus a term for turns.

    Args:
        centres, axes: [N, 3] positions and optical axes.
        other_centres, other_axes: [M, 3] positions and optical axes, in the same world frame.
    """
    extent = (other_centres - other_centres.mean(dim=0)).norm(dim=1).max().clamp_min(1e-9)
    away = (centres[:, None] - other_centres).norm(dim=-1) / extent
    return away + _TURNED * (1 - axes @ other_axes.T) / 2


def _apart(views: Sequence[View], others: Sequence[View]) -> Tensor:
    """Return the `camera_distances` [N, M] between views."""
    centres, axes = (
        [torch.stack([part(view).double().cpu() for view in group]) for group in (views, others)]
        for part in (lambda view: view.centre, lambda view: view.viewmat[2, :3])
    )
    return camera_distances(centres[0], axes[0], centres[1], axes[1])
