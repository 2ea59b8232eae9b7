"""Morton codes (Z-order): integers that sort points so that neighbours in space are close in the order."""

import numpy as np
from numpy.typing import NDArray


def morton_codes(coordinates: NDArray, depth: int) -> NDArray[np.int64]:
    """Interleave the bits of coordinates.

    Args:
        coordinates: [N, 3] integers from 0 to 2^depth - 1.
        depth: bits of a coordinate, at most 21.

    Returns:
        [N] codes, with x in the highest bit of each triple.
    """
    codes = np.zeros(len(coordinates), dtype=np.int64)
    for bit in range(depth):
        for axis in range(3):
            codes |= ((coordinates[:, axis].astype(np.int64) >> bit) & 1) << (3 * bit + 2 - axis)
    return codes


def morton_coordinates(codes: NDArray, depth: int) -> NDArray[np.int64]:
    """Invert `morton_codes`: [N] -> [N, 3]."""
    coordinates = np.zeros((len(codes), 3), dtype=np.int64)
    for bit in range(depth):
        for axis in range(3):
            coordinates[:, axis] |= ((codes >> (3 * bit + 2 - axis)) & 1) << bit
    return coordinates
