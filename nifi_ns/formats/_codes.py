"""What the quantised formats share: bytes to values and back, rotations without their largest component, an order."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nifi_ns.errors import CorruptFileError
from nifi_ns.splats import Splats

_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])


def array(tensor: Tensor) -> NDArray[np.float32]:
    """A tensor of any device, as float32."""
    return tensor.detach().cpu().float().numpy()


def checked(
    path: Path,
    means: NDArray,  # [N, 3]
    scales: NDArray,  # [N, 3] logarithms
    quats: NDArray,  # [N, 4] wxyz
    opacities: NDArray,  # [N] logits
    sh: NDArray,  # [N, (degree + 1)^2, 3]
) -> Splats:
    """What was read from `path`, as `Splats`.

    Raises:
        CorruptFileError: if there are no gaussians, a value is not finite, or a rotation has no direction.
    """
    if not len(means):
        raise CorruptFileError(f"{path} holds no gaussians")
    parts = [np.array(part, np.float32, order="C") for part in (means, scales, quats, opacities, sh)]
    if not all(np.isfinite(part).all() for part in parts):
        raise CorruptFileError(f"{path} holds values that are not finite")
    if not np.abs(parts[2]).max(axis=1).all():
        raise CorruptFileError(f"{path} holds rotations of length zero")
    return Splats(*(torch.from_numpy(part) for part in parts))


def quantize(values: ArrayLike, levels: int = 255) -> NDArray[np.int64]:
    """The integers 0 to `levels` that stand for `values` between 0 and 1; others are clipped."""
    return np.rint(np.clip(values, 0, 1) * float(levels)).astype(np.int64)


def opacity_bytes(logits: NDArray) -> NDArray[np.uint8]:
    """Opacities as bytes, from their logits [N]."""
    return quantize(1 / (1 + np.exp(-np.clip(logits, -20, 20)))).astype(np.uint8)


def opacity_logits(codes: NDArray[np.uint8]) -> NDArray:
    """Logits [N] of opacities in bytes; 0 and 255 stand for less and more than any logit, and become -6.9 and 6.9."""
    alpha = np.clip(codes / 255.0, 1 / 1024, 1 - 1 / 1024)
    return np.log(alpha / (1 - alpha))


def smallest_three(quats: NDArray) -> tuple[NDArray[np.int64], NDArray]:
    """Index [N] of the largest of four components, and the other three in order [N, 3] in +-sqrt(1/2).

    The quaternions [N, 4] may have any length and order; the largest component of what comes back is positive.
    """
    quats = quats / np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-30)
    largest = np.abs(quats).argmax(axis=1)
    sign = np.where(np.take_along_axis(quats, largest[:, None], axis=1) < 0, -1.0, 1.0)
    return largest, np.take_along_axis(quats, _OTHERS[largest], axis=1) * sign


def from_smallest_three(largest: NDArray, others: NDArray) -> NDArray:
    """Quaternions [N, 4] of length one; the inverse of `smallest_three`."""
    quats = np.empty((len(largest), 4))
    np.put_along_axis(quats, _OTHERS[largest], others, axis=1)
    rest = np.sqrt(np.maximum(0, 1 - np.square(others).sum(axis=1)))
    np.put_along_axis(quats, largest[:, None].astype(np.int64), rest[:, None], axis=1)
    return quats


def morton_order(means: Tensor) -> Tensor:
    """[N] indices that sort `means` [N, 3] along a Z-order curve of 2^21 cells a side, so that neighbours meet."""
    low = means.amin(dim=0)
    cells = ((means - low).double() / (means.amax(dim=0) - low).clamp_min(1e-30) * (2**21 - 1)).long()
    code = torch.zeros_like(cells[:, 0])
    for bit in range(21):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return torch.argsort(code, stable=True)
