"""Geometry between views: lift pixels to 3D by their depth, project them into other views, sample pictures there.

Positions in a picture run from (-1, -1), its top left corner, to (1, 1), as in `grid_sample`. `stack` batches several
views into one. Nothing here synchronises with a GPU.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nifi_ns.views import View


class Epipolar(NamedTuple):
    """Maps positions in one view to another, for any depth: homogeneous, `depth * rays + offset`."""

    rays: tuple[Tensor, Tensor, Tensor]
    """x, y and z, each [..., H, W]."""
    offset: tuple[Tensor, Tensor, Tensor]
    """x, y and z, each [..., 1, 1]."""

    def project(self, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions [..., H, W, 2] and depths [..., H, W, 1] in the other view, for `depth` [..., H, W, 1].

        Depths behind the other camera are not positive.
        """
        x, y, z = (torch.addcmul(o, depth[..., 0], r) for r, o in zip(self.rays, self.offset, strict=True))
        scale = z.clamp_min(1e-6).reciprocal()
        return torch.stack([x * scale, y * scale], dim=-1), z[..., None]


def pixels(size: Sequence[int], device: torch.device) -> Tensor:
    """Return the positions (x, y) of pixel centres, [height, width, 2], for a picture of `size` (height, width)."""
    height, width = size
    y = (torch.arange(height, device=device) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=device) + 0.5) * (2 / width) - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def epipolar(view: View, other: View, at: Tensor) -> Epipolar:
    """Return how positions `at`, [..., H, W, 2], of `view` map into `other` with depth. Either may be stacked."""
    relative = other.viewmat @ _inverse(view.viewmat)
    homography = (_lens(other) @ relative[..., :3, :3] @ _inverse(_lens(view)))[..., None, None]
    offset = (_lens(other) @ relative[..., :3, 3:])[..., None]
    x, y = at[..., 0], at[..., 1]
    rays = [
        torch.addcmul(homography[..., i, 0, :, :] * x + homography[..., i, 2, :, :], homography[..., i, 1, :, :], y)
        for i in range(3)
    ]
    return Epipolar((rays[0], rays[1], rays[2]), (offset[..., 0, :, :], offset[..., 1, :, :], offset[..., 2, :, :]))


def stack(views: Sequence[View]) -> View:
    """Stack views into one with matrices [N, 4, 4] and [N, 3, 3], the size of the largest, and no photos."""
    width, height = max(view.width for view in views), max(view.height for view in views)
    K = [torch.stack([v.K[0] * (width / v.width), v.K[1] * (height / v.height), v.K[2]]) for v in views]
    return View("", torch.stack([view.viewmat for view in views]), torch.stack(K), width, height)


def lift(view: View, depth: Tensor) -> Tensor:
    """Return the world positions, [h, w, 3], of a grid over `view` at `depth`, [h, w, 1]."""
    at = pixels(depth.shape[:2], depth.device)
    camera = depth * (F.pad(at, (0, 1), value=1.0) @ _inverse(_lens(view)).T)
    return (camera - view.viewmat[:3, 3]) @ view.viewmat[:3, :3]


def project(view: View, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions [..., P, 2] and depths [..., P, 1] of world `points`, [P, 3], in `view`, maybe stacked."""
    camera = points @ view.viewmat[..., :3, :3].mT + view.viewmat[..., None, :3, 3]
    return (camera @ _lens(view).mT)[..., :2] / camera[..., 2:].clamp_min(1e-6), camera[..., 2:]


def sample(pictures: Tensor, at: Tensor) -> Tensor:
    """Sample `pictures`, [N, C, h, w], bilinearly at positions `at`, [N, H, W, 2]. Returns [N, C, H, W].

    Positions outside get the value at the border.
    """
    return F.grid_sample(pictures, at, mode="bilinear", padding_mode="border", align_corners=False)


def inside(at: Tensor, view: View, *, ramp: float = 1.0) -> Tensor:
    """Return 0 for positions `at`, [..., 2], outside `view`, and 1 from `ramp` pixels inside its border: [..., 1]."""
    x, y = 1 - at[..., :1].abs(), 1 - at[..., 1:].abs()
    return torch.minimum(x * (view.width / 2 / ramp), y * (view.height / 2 / ramp)).clamp(0, 1)


def angle_squared(points: Tensor, one: Tensor, others: Tensor) -> Tensor:
    """Return the squared angles, [N, ...] in radians, from points [..., 3] to `one` [3] and `others` [N, 3]."""
    sight, aside = points - one, one - others
    squared = sight.square().sum(dim=-1)
    # |a|^2, |b|^2 and a.b of the lines of sight a and b = a + aside, without a tensor [N, ..., 3]
    along = torch.stack([sight @ step for step in aside])
    length = aside.square().sum(dim=-1).view(-1, *[1] * squared.dim())
    cosine = (squared + along) / (squared * (squared + 2 * along + length)).clamp_min(1e-24).sqrt()
    return 2 * (1 - cosine).clamp_min(0)


def visibility(points: Tensor, view: View, others: View, *, angle: float = 0.25) -> Tensor:
    """Return how well each of the stacked `others` shows `points`, [P, 3], as `view` does: [V, P] in [0, 1].

    0 outside its picture; lower from another angle (in radians) and from further away. Occlusion is ignored.
    """
    at, z = project(others, points)
    seen = (z[..., 0] > 1e-6) & (inside(at, others)[..., 0] > 0)
    turned = torch.exp(-angle_squared(points, view.centre, centres(others)) / angle**2)
    away = (points - centres(others)[:, None]).norm(dim=-1)
    nearer = (points - view.centre).norm(dim=-1) / away.clamp_min(1e-9)
    return seen * turned * nearer.clamp(max=1)


def centres(views: View) -> Tensor:
    """Return the world positions of stacked views, [N, 3]."""
    return -(views.viewmat[:, :3, :3].mT @ views.viewmat[:, :3, 3:])[..., 0]


def _lens(view: View) -> Tensor:
    """Return the matrices [..., 3, 3] from camera axes to homogeneous positions in the picture."""
    x, y, z = view.K.unbind(dim=-2)
    return torch.stack([x * (2 / view.width) - z, y * (2 / view.height) - z, z], dim=-2)


def _inverse(matrix: Tensor) -> Tensor:
    return torch.linalg.inv_ex(matrix).inverse  # unlike inv, does not wait for the GPU to report errors
