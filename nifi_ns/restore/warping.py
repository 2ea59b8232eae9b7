"""Geometry between views: lift pixels to 3D by their depth, project them elsewhere, look pictures up there."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nifi_ns.views import View


class Epipolar(NamedTuple):
    """Where the pixels of one view lie in another, for any depth: homogeneous pixels `depth * rays + offset`."""

    rays: Tensor
    """[H, W, 3]"""
    offset: Tensor
    """[3]"""

    def project(self, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [H, W, 2] and depths [H, W, 1] in the other view; behind its camera the depth is not positive."""
        homogeneous = depth * self.rays + self.offset
        z = homogeneous[..., 2:]
        return homogeneous[..., :2] / z.clamp_min(1e-6), z


def pixels(view: View, height: int, width: int) -> Tensor:
    """[height, width, 2] pixel coordinates (x, y) in `view` of the centres of a grid that covers it."""
    device = view.K.device
    y = (torch.arange(height, device=device) + 0.5) * (view.height / height)
    x = (torch.arange(width, device=device) + 0.5) * (view.width / width)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def epipolar(view: View, other: View, height: int, width: int) -> Epipolar:
    """How a grid of `height` x `width` pixels over `view` moves in `other` with depth."""
    relative = other.viewmat @ torch.linalg.inv(view.viewmat)
    homography = other.K @ relative[:3, :3] @ torch.linalg.inv(view.K)
    homogeneous = F.pad(pixels(view, height, width), (0, 1), value=1.0)
    return Epipolar(homogeneous @ homography.T, other.K @ relative[:3, 3])


def lift(view: View, depth: Tensor, at: Tensor | None = None) -> Tensor:
    """World positions [h, w, 3] of pixels `at` [h, w, 2], by default a grid over `view`, at `depth` [h, w, 1]."""
    at = pixels(view, *depth.shape[:2]) if at is None else at
    camera = depth * (F.pad(at, (0, 1), value=1.0) @ torch.linalg.inv(view.K).T)
    return (camera - view.viewmat[:3, 3]) @ view.viewmat[:3, :3]


def sample(picture: Tensor, at: Tensor, view: View, *, mode: str = "bilinear") -> Tensor:
    """Look `picture` [1, C, h, w], which covers all of `view`, up at its pixels `at` [H, W, 2]: [C, H, W].

    Beyond the border it continues as at the border.
    """
    grid = at * (2 / at.new_tensor([view.width, view.height])) - 1
    return F.grid_sample(picture, grid[None], mode=mode, padding_mode="border", align_corners=False)[0]


def inside(at: Tensor, view: View, *, ramp: float = 1.0) -> Tensor:
    """[..., 1] how far pixels `at` [..., 2] are within `view`: 0 outside, 1 from `ramp` pixels off the border."""
    margin = torch.minimum(at, at.new_tensor([view.width, view.height]) - at).amin(dim=-1, keepdim=True)
    return (margin / ramp).clamp(0, 1)


def angle_squared(points: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """[..., 1] squared angle, in radians, between the lines of sight from two positions [3] to `points` [..., 3]."""
    cosine = (F.normalize(points - one, dim=-1) * F.normalize(points - other, dim=-1)).sum(dim=-1, keepdim=True)
    return 2 * (1 - cosine).clamp_min(0)


def visibility(points: Tensor, view: View, others: Sequence[View], *, angle: float = 0.25) -> Tensor:
    """[V, P] in [0, 1]: how well each of `others` shows `points` [P, 3] as `view` does.

    0 out of its picture; less under another angle (in radians) and from further away. Occlusion is not looked at.
    """
    distance = (points - view.centre).norm(dim=-1)
    rows = []
    for other in others:
        camera = points @ other.viewmat[:3, :3].T + other.viewmat[:3, 3]
        at = (camera @ other.K.T)[:, :2] / camera[:, 2:].clamp_min(1e-6)
        seen = (camera[:, 2] > 1e-6) & (inside(at, other)[:, 0] > 0)
        turned = torch.exp(-angle_squared(points, view.centre, other.centre)[:, 0] / angle**2)
        rows.append(seen * turned * (distance / camera.norm(dim=-1).clamp_min(1e-9)).clamp(max=1))
    return torch.stack(rows)
