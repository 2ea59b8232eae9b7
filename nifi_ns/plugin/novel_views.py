"""Cameras where no photo was taken: between those of a capture, or on the way from them to where somebody will look."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from nerfstudio.cameras.camera_paths import get_path_from_json

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.plugin.views import view_of
from nifi_ns.restore.consistency import stepped
from nifi_ns.views import View

_TURNED = 1.0
"""How many times the cameras' spread a camera counts as far when it looks the other way."""
_HALF_WAY = 0.5
"""Part of the way to a neighbour at which a camera is as far as can be from both."""


def between(views: Sequence[View], count: int, part: float) -> list[View]:
    """Up to `count` cameras between neighbouring ones: `part` of the way, in (0, 1], from a camera to half way.

    Every camera goes towards its nearest neighbour before any goes towards its second, and no pair is used twice.
    """
    pairs: dict[frozenset[int], tuple[int, int]] = {}
    neighbours = [_nearest(view, views) for view in views]
    for rank in range(1, len(views)):
        for i, nearest in enumerate(neighbours):
            pairs.setdefault(frozenset((i, nearest[rank])), (i, nearest[rank]))
    chosen = list(pairs.values())[:count]
    return [stepped(views[i], views[j], part * _HALF_WAY) for i, j in chosen]


def towards(targets: Sequence[View], views: Sequence[View], part: float) -> list[View]:
    """For each target a camera `part` of the way, in (0, 1], from the nearest of `views`, with its lens and size."""
    return [stepped(views[_nearest(target, views)[0]], target, part) for target in targets]


def read_camera_path(path: Path) -> list[View]:
    """The cameras of a path that nerfstudio's viewer has saved.

    Raises:
        NifiError: if there is no such file, or it is none (CorruptFileError).
    """
    if not path.is_file():
        raise NifiError(f"no camera path {path}: save one in the viewer's Render tab")
    try:
        cameras = get_path_from_json(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CorruptFileError(f"{path} is not a camera path of nerfstudio's viewer: {error!r}") from error
    return [view_of(cameras[i], f"{path.stem}_{i:04d}") for i in range(len(cameras))]


def _nearest(view: View, views: Sequence[View]) -> list[int]:
    """Indices of `views`, those first that are taken nearest to `view` and look about the same way."""
    centres = torch.stack([other.centre for other in views])
    spread = (centres - centres.mean(dim=0)).norm(dim=1).max().clamp_min(1e-9)
    away = (centres - view.centre.to(centres)).norm(dim=1) / spread
    turned = (1 - torch.stack([other.viewmat[2, :3] for other in views]) @ view.viewmat[2, :3].to(centres)) / 2
    distance = away + _TURNED * turned
    return sorted(range(len(views)), key=lambda i: (views[i] is not view, float(distance[i])))
