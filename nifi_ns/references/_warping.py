"""Geometry between views: lift pixels to 3D by their depth, project them elsewhere, look pictures up there.

Positions in a picture go from (-1, -1), its top left corner, to (1, 1), as `grid_sample` has them. `stack` makes one
view of several, for all of them to be looked at in one go. Nothing here waits for a GPU.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nifi_ns.views import View


class Epipolar(NamedTuple):
    """Where positions in one view lie in another, for any depth: homogeneous, `depth * rays + offset`."""

    rays: tuple[Tensor, Tensor, Tensor]
    """x, y and z: [..., H, W] each."""
    offset: tuple[Tensor, Tensor, Tensor]
    """The same: [..., 1, 1] each."""

    def project(self, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [..., H, W, 2] and depths [..., H, W, 1] in the other view, of what is at `depth` [..., H, W, 1].

        Behind its camera the depth is not positive.
        """
        x, y, z = (torch.addcmul(o, depth[..., 0], r) for r, o in zip(self.rays, self.offset, strict=True))
        scale = z.clamp_min(1e-6).reciprocal()
        return torch.stack([x * scale, y * scale], dim=-1), z[..., None]


def pixels(size: Sequence[int], device: torch.device) -> Tensor:
    """[height, width, 2] positions (x, y) of the centres of the pixels of a picture of `size` (height, width)."""
    height, width = size
    y = (torch.arange(height, device=device) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=device) + 0.5) * (2 / width) - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def epipolar(view: View, other: View, at: Tensor) -> Epipolar:
    """How positions `at` [..., H, W, 2] of `view` move in `other` with depth. Either may be several."""
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
    """Several views as one, with matrices [N, 4, 4] and [N, 3, 3], without photos, as large as the largest of them."""
    width, height = max(view.width for view in views), max(view.height for view in views)
    K = [torch.stack([v.K[0] * (width / v.width), v.K[1] * (height / v.height), v.K[2]]) for v in views]
    return View("", torch.stack([view.viewmat for view in views]), torch.stack(K), width, height)


def lift(view: View, depth: Tensor) -> Tensor:
    """World positions [h, w, 3] of a grid over `view`, at `depth` [h, w, 1]."""
    at = pixels(depth.shape[:2], depth.device)
    camera = depth * (F.pad(at, (0, 1), value=1.0) @ _inverse(_lens(view)).T)
    return (camera - view.viewmat[:3, 3]) @ view.viewmat[:3, :3]


def project(view: View, points: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [..., P, 2] and depths [..., P, 1] in `view`, or in several, of `points` [P, 3] in the world."""
    camera = points @ view.viewmat[..., :3, :3].mT + view.viewmat[..., None, :3, 3]
    return (camera @ _lens(view).mT)[..., :2] / camera[..., 2:].clamp_min(1e-6), camera[..., 2:]


def sample(pictures: Tensor, at: Tensor) -> Tensor:
    """Look `pictures` [N, C, h, w] up at positions `at` [N, H, W, 2]: [N, C, H, W].

    Beyond the border they continue as at the border.
    """
    return F.grid_sample(pictures, at, mode="bilinear", padding_mode="border", align_corners=False)


def inside(at: Tensor, view: View, *, ramp: float = 1.0) -> Tensor:
    """[..., 1] how far positions `at` [..., 2] are within `view`: 0 outside, 1 from `ramp` pixels off the border."""
    x, y = 1 - at[..., :1].abs(), 1 - at[..., 1:].abs()
    return torch.minimum(x * (view.width / 2 / ramp), y * (view.height / 2 / ramp)).clamp(0, 1)


def angle_squared(points: Tensor, one: Tensor, others: Tensor) -> Tensor:
    """[N, ...] squared angles, in radians, at which `points` [..., 3] are seen from `one` [3] and `others` [N, 3]."""
    sight, aside = points - one, one - others
    squared = sight.square().sum(dim=-1)
    # |a|^2, |b|^2 and ab of a line of sight a and another b = a + aside, without a [N, ..., 3]
    along = torch.stack([sight @ step for step in aside])
    length = aside.square().sum(dim=-1).view(-1, *[1] * squared.dim())
    cosine = (squared + along) / (squared * (squared + 2 * along + length)).clamp_min(1e-24).sqrt()
    return 2 * (1 - cosine).clamp_min(0)


def visibility(points: Tensor, view: View, others: View, *, angle: float = 0.25) -> Tensor:
    """[V, P] in [0, 1]: how well each of `others`, stacked, shows `points` [P, 3] as `view` does.

    0 out of its picture; less under another angle (in radians) and from further away. Occlusion is not looked at.
    """
    at, z = project(others, points)
    seen = (z[..., 0] > 1e-6) & (inside(at, others)[..., 0] > 0)
    turned = torch.exp(-angle_squared(points, view.centre, centres(others)) / angle**2)
    away = (points - centres(others)[:, None]).norm(dim=-1)
    nearer = (points - view.centre).norm(dim=-1) / away.clamp_min(1e-9)
    return seen * turned * nearer.clamp(max=1)


def centres(views: View) -> Tensor:
    """[N, 3] the positions in the world of stacked views."""
    return -(views.viewmat[:, :3, :3].mT @ views.viewmat[:, :3, 3:])[..., 0]


def _lens(view: View) -> Tensor:
    """[..., 3, 3] from camera axes to homogeneous positions in the picture."""
    x, y, z = view.K.unbind(dim=-2)
    return torch.stack([x * (2 / view.width) - z, y * (2 / view.height) - z, z], dim=-2)


def _inverse(matrix: Tensor) -> Tensor:
    return torch.linalg.inv_ex(matrix).inverse  # unlike inv, does not wait for the GPU to look for errors
