"""Helpers of all formats: validation, bytes to values and back, rotations, and Morton order."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nifi_ns.errors import CorruptFileError
from nifi_ns.morton import morton_codes
from nifi_ns.splats import Splats

_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
_FREE_COUNT = 1 << 16  # gaussians that a file of any size may hold
_MAX_PER_BYTE = 8  # gaussians per byte beyond these
_BULK = 0.99
_REACH = 32
_FEWEST = 100  # fewer gaussians are never moved
_DEPTH = 21  # bits of a coordinate of Morton codes


def array(tensor: Tensor) -> NDArray[np.float32]:
    """Return a tensor on any device as a float32 array."""
    return tensor.detach().cpu().float().numpy()


def checked(
    path: Path,
    means: NDArray,  # [N, 3]
    scales: NDArray,  # [N, 3] logarithms
    quats: NDArray,  # [N, 4] wxyz
    opacities: NDArray,  # [N] logits
    sh: NDArray,  # [N, (degree + 1)^2, 3]
) -> Splats:
    """Return the gaussians read from `path` as validated `Splats`.

    Raises:
        CorruptFileError: if there are no gaussians, or gaussians that cannot be drawn.
    """
    if not len(means):
        raise CorruptFileError(f"{path} holds no gaussians")
    parts = [np.array(part, np.float32, order="C") for part in (means, scales, quats, opacities, sh)]
    splats = Splats(*(torch.from_numpy(part) for part in parts))
    if problem := splats.problem():
        raise CorruptFileError(f"{path}: {problem}")
    return splats


def can_hold(size: int, count: int) -> bool:
    """Return whether `size` compressed bytes, of a whole file or of its positions, can hold `count` gaussians.

    All formats take several bytes per gaussian. A file that declares far more could make its reader allocate gigabytes.
    """
    return count <= _FREE_COUNT + _MAX_PER_BYTE * size


def within_reach(splats: Splats) -> Splats:
    """Move very distant gaussians closer and shrink them in proportion.

    They look the same from the middle of the scene. Otherwise the range of positions would make quantisation too coarse
    for all other gaussians. Very distant is more than 32 times the radius that holds 99 % of the gaussians.
    """
    if len(splats) < _FEWEST:
        return splats
    means = splats.means.detach().double()
    middle = means.median(dim=0).values
    distances = (means - middle).norm(dim=1)
    reach = _REACH * distances.kthvalue(int(_BULK * len(means))).values
    far = distances > reach
    if reach == 0 or not far.any():
        return splats
    nearer = torch.where(far, reach / distances, 1.0)[:, None]
    means = torch.where(far[:, None], middle + nearer * (means - middle), means)
    return replace(splats, means=means.to(splats.means), scales=splats.scales + nearer.log().to(splats.scales))


def morton_order(means: Tensor) -> Tensor:
    """Return the indices [N] that sort `means` [N, 3] in Morton order, so that neighbours in space are adjacent.

    Space is contracted around the middle of the scene, so that distant gaussians do not make the order coarser there.
    """
    offsets = array(means).astype(np.float64)
    offsets -= np.median(offsets, axis=0)
    offsets /= max(float(np.median(np.abs(offsets))), 1e-30)
    cells = ((offsets / (1 + np.abs(offsets)) + 1) / 2 * (2**_DEPTH - 1)).astype(np.int64)
    return torch.from_numpy(morton_codes(cells, _DEPTH).argsort(kind="stable")).to(means.device)


def quantize(values: ArrayLike, levels: int = 255) -> NDArray[np.int64]:
    """Quantise `values` from 0 to 1, clipped, to integers from 0 to `levels`."""
    return np.rint(np.clip(values, 0, 1) * float(levels)).astype(np.int64)


def opacity_bytes(logits: NDArray) -> NDArray[np.uint8]:
    """Convert opacity logits [N] to bytes."""
    return quantize(1 / (1 + np.exp(-np.clip(logits, -20, 20)))).astype(np.uint8)


def opacity_logits(codes: NDArray[np.uint8]) -> NDArray:
    """Convert opacities in bytes [N] to logits. 0 and 255 would be infinite and become -6.9 and 6.9."""
    alpha = np.clip(codes / 255.0, 1 / 1024, 1 - 1 / 1024)
    return np.log(alpha / (1 - alpha))


def unit_quats(quats: NDArray) -> NDArray[np.float64]:
    """Normalise quaternions [N, 4] of any length but zero."""
    quats = quats.astype(np.float64)  # in float32 the square of a small component is zero
    return quats / np.linalg.norm(quats, axis=1, keepdims=True)


def smallest_three(quats: NDArray) -> tuple[NDArray[np.int64], NDArray]:
    """Return the index [N] of each quaternion's largest component, and the other three in order [N, 3], +-sqrt(1/2).

    The quaternions [N, 4] may have any length but zero and any component order. Signs are those of the unit quaternion
    whose largest component is positive.
    """
    quats = unit_quats(quats)
    largest = np.abs(quats).argmax(axis=1)
    sign = np.where(np.take_along_axis(quats, largest[:, None], axis=1) < 0, -1.0, 1.0)
    return largest, np.take_along_axis(quats, _OTHERS[largest], axis=1) * sign


def from_smallest_three(largest: NDArray, others: NDArray) -> NDArray:
    """Invert `smallest_three`: return unit quaternions [N, 4]."""
    quats = np.empty((len(largest), 4))
    np.put_along_axis(quats, _OTHERS[largest], others, axis=1)
    rest = np.sqrt(np.maximum(0, 1 - np.square(others).sum(axis=1)))
    np.put_along_axis(quats, largest[:, None].astype(np.int64), rest[:, None], axis=1)
    return quats
