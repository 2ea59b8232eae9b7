"""Canonical rotations: a unique quaternion for each ellipsoid."""

import math

import torch
from torch import Tensor

from nifi_ns.splats import Splats


def canonical(splats: Splats) -> Splats:
    """Return the same ellipsoids with axes sorted from longest to shortest, and unit quaternions with the largest w.

    Differentiable and idempotent.
    """
    scales, order = splats.scales.sort(dim=1, descending=True, stable=True)
    quats = torch.nn.functional.normalize(splats.quats, dim=1)
    quats = _permute_axes(quats, order)
    # half turns about the axes map the ellipsoid to itself and can move any component to w
    w, x, y, z = quats.unbind(dim=1)
    turns = torch.stack(
        [quats, torch.stack([-x, w, z, -y], 1), torch.stack([-y, -z, w, x], 1), torch.stack([-z, y, -x, w], 1)], 1
    )
    largest = quats.detach().abs().argmax(dim=1)
    quats = turns[torch.arange(len(quats), device=quats.device), largest]
    quats = torch.where(quats[:, :1] < 0, -quats, quats)
    return Splats(splats.means, scales, quats, splats.opacities, splats.sh)


_H = math.sqrt(0.5)
_PERMUTATIONS = torch.tensor(
    # rotations that move axis order[j] to position j, indexed by 2 * order[0] + (order[1] > order[2])
    [[1, 0, 0, 0], [_H, _H, 0, 0], [_H, 0, 0, _H], [0.5, 0.5, 0.5, 0.5], [0.5, -0.5, -0.5, -0.5], [_H, 0, _H, 0]]
)


def _permute_axes(quats: Tensor, order: Tensor) -> Tensor:
    # [N, 4], [N, 3] -> [N, 4]: rotations with reordered columns (one is negated if the permutation is odd)
    by = _PERMUTATIONS.to(quats)[2 * order[:, 0] + (order[:, 1] > order[:, 2])]
    (w, x, y, z), (a, b, c, d) = quats.unbind(1), by.unbind(1)
    return torch.stack(
        [
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ],
        dim=1,
    )
