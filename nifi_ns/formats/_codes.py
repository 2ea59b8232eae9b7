"""What the quantised formats share: what may be read and written, bytes to values and back, rotations, an order."""

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
_FREE_COUNT = 1 << 16
_MAX_PER_BYTE = 8
_BULK = 0.99
_REACH = 32
_FEWEST = 100
_DEPTH = 21


def array(tensor: Tensor) -> NDArray[np.float32]:
    """Return a tensor of any device as float32."""
    return tensor.detach().cpu().float().numpy()


def checked(
    path: Path,
    means: NDArray,  # [N, 3]
    scales: NDArray,  # [N, 3] logarithms
    quats: NDArray,  # [N, 4] wxyz
    opacities: NDArray,  # [N] logits
    sh: NDArray,  # [N, (degree + 1)^2, 3]
) -> Splats:
    """Return what was read from `path` as `Splats`.

    Raises:
        CorruptFileError: if there are no gaussians, or some that cannot be drawn.
    """
    if not len(means):
        raise CorruptFileError(f"{path} holds no gaussians")
    parts = [np.array(part, np.float32, order="C") for part in (means, scales, quats, opacities, sh)]
    splats = Splats(*(torch.from_numpy(part) for part in parts))
    if problem := splats.problem():
        raise CorruptFileError(f"{path}: {problem}")
    return splats


def can_hold(size: int, count: int) -> bool:
    """Whether `size` compressed bytes, of a file or of its positions alone, may be those of `count` gaussians.

    All formats take several bytes for a gaussian. What declares far more gaussians would cost its reader gigabytes.
    """
    return count <= _FREE_COUNT + _MAX_PER_BYTE * size


def within_reach(splats: Splats) -> Splats:
    """Bring the gaussians that are very far away nearer, and make them smaller by as much.

    From the middle of the scene they look the same. A quantiser whose range had to hold them would be too coarse for
    all the others. Far is 32 times as far from the middle as 99 % of the gaussians are.
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
    """Return the indices [N] that sort `means` [N, 3] along a Z-order curve, so that neighbours meet.

    Space is contracted around the middle of the scene, so that the curve is as fine there however far others are.
    """
    offsets = array(means).astype(np.float64)
    offsets -= np.median(offsets, axis=0)
    offsets /= max(float(np.median(np.abs(offsets))), 1e-30)
    cells = ((offsets / (1 + np.abs(offsets)) + 1) / 2 * (2**_DEPTH - 1)).astype(np.int64)
    return torch.from_numpy(morton_codes(cells, _DEPTH).argsort(kind="stable")).to(means.device)


def quantize(values: ArrayLike, levels: int = 255) -> NDArray[np.int64]:
    """Return the integers 0 to `levels` that stand for `values` between 0 and 1; others are clipped."""
    return np.rint(np.clip(values, 0, 1) * float(levels)).astype(np.int64)


def opacity_bytes(logits: NDArray) -> NDArray[np.uint8]:
    """Return opacities as bytes, from their logits [N]."""
    return quantize(1 / (1 + np.exp(-np.clip(logits, -20, 20)))).astype(np.uint8)


def opacity_logits(codes: NDArray[np.uint8]) -> NDArray:
    """Return the logits [N] of opacities in bytes.

    0 and 255 stand for less and more than any logit, and become -6.9 and 6.9.
    """
    alpha = np.clip(codes / 255.0, 1 / 1024, 1 - 1 / 1024)
    return np.log(alpha / (1 - alpha))


def unit_quats(quats: NDArray) -> NDArray[np.float64]:
    """Return quaternions [N, 4] of any length but zero at length one."""
    quats = quats.astype(np.float64)  # in float32 the square of a small component is zero
    return quats / np.linalg.norm(quats, axis=1, keepdims=True)


def smallest_three(quats: NDArray) -> tuple[NDArray[np.int64], NDArray]:
    """Return the index [N] of the largest of four components, and the other three in order [N, 3] in +-sqrt(1/2).

    The quaternions [N, 4] may have any length but zero and any order; the largest component of what comes back is
    positive.
    """
    quats = unit_quats(quats)
    largest = np.abs(quats).argmax(axis=1)
    sign = np.where(np.take_along_axis(quats, largest[:, None], axis=1) < 0, -1.0, 1.0)
    return largest, np.take_along_axis(quats, _OTHERS[largest], axis=1) * sign


def from_smallest_three(largest: NDArray, others: NDArray) -> NDArray:
    """Return quaternions [N, 4] of length one; the inverse of `smallest_three`."""
    quats = np.empty((len(largest), 4))
    np.put_along_axis(quats, _OTHERS[largest], others, axis=1)
    rest = np.sqrt(np.maximum(0, 1 - np.square(others).sum(axis=1)))
    np.put_along_axis(quats, largest[:, None].astype(np.int64), rest[:, None], axis=1)
    return quats
