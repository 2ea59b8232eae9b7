"""Cameras for splats that come without any, such as those of a `.ply`."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nifi_ns.rasterize import render
from nifi_ns.splats import Splats
from nifi_ns.views import View

_FIELD_OF_VIEW = math.radians(60)
_TRIES = 16


def cameras_around(splats: Splats, count: int = 64, size: int = 400, seed: int = 0) -> list[View]:
    """Place `count` square views of `size` pixels in and around the scene, without photos, on the device of `splats`.

    Each camera faces a random visible gaussian of the inner part of the scene, from a random direction. Its distance is
    0.5 to 3 times the radius that holds half of the visible gaussians. The best of several candidates is kept: the one
    with the most free space around it, because it is unlikely to be inside an object.
    """
    generator = torch.Generator().manual_seed(seed)
    means, alphas = splats.means.detach().float().cpu(), splats.opacities.detach().sigmoid().cpu()
    visible = means[alphas >= min(0.1, float(alphas.max()))]
    middle = visible.median(dim=0).values
    distances = (visible - middle).norm(dim=1)
    radius = max(float(distances.median()), 1e-6)
    inner = visible[distances <= 2 * radius]
    # a few thousand gaussians are enough to estimate the distance to the nearest one
    sample = visible[torch.randperm(len(visible), generator=generator)[:4096]]
    focal = size / 2 / math.tan(_FIELD_OF_VIEW / 2)
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], device=splats.device)
    views = []
    for i in range(count):
        targets = inner[torch.randint(len(inner), (_TRIES,), generator=generator)]
        directions = torch.nn.functional.normalize(torch.randn(_TRIES, 3, generator=generator), dim=1)
        ranges = radius * 0.5 * 6 ** torch.rand(_TRIES, 1, generator=generator)
        centres = targets + ranges * directions
        free = torch.cdist(centres, sample).amin(dim=1) / ranges[:, 0]
        best = int(free.argmax())
        viewmat = looking_at(centres[best], targets[best]).to(splats.device)
        views.append(View(f"around_{i:03d}", viewmat, K, size, size))
    return views


@torch.no_grad()
def with_renders(
    splats: Splats, views: Sequence[View], *, background: Tensor | None = None, antialiased: bool = False
) -> list[View]:
    """Return the views with renders of `splats` as their photos; for the other arguments see `rasterize.render`."""
    drawn: dict[str, Any] = {"background": background, "antialiased": antialiased}
    return [replace(view, image=render(splats, view, **drawn).rgb.clamp(0, 1)) for view in views]


def looking_at(centre: Tensor, target: Tensor) -> Tensor:
    """Return the world-to-camera matrix [4, 4] (OpenCV axes) of a camera at `centre` [3] facing `target` [3], z up."""
    forward = torch.nn.functional.normalize(target - centre, dim=0)
    up = torch.tensor([0.0, 0.0, 1.0])
    if float((forward @ up).abs()) > 0.99:
        up = torch.tensor([0.0, 1.0, 0.0])
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    viewmat = torch.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ centre
    return viewmat
