"""Which gaussians touch which tiles: lists in order of depth, built by counting instead of by sorting pairs."""

import math

import numpy as np
from numba import njit

from nifi_ns.rasterize._constants import MIN_ALPHA
from nifi_ns.rasterize._kernels import TILE

_SLACK = 0.01  # pixels an ellipse is widened by, for rounding


@njit(inline="always")
def _clip(value, low, high):
    return min(max(value, low), high)


@njit(
    "(int64[::1], float32[:, ::1], float32[:, ::1], float32[::1], float32[:, ::1], int32[:, ::1], float32[:, ::1])",
    nogil=True,
    cache=True,
    error_model="numpy",
)
def pack(order, means2d, conics, opacities, colors, radii, rows):
    """Gather what tiles need of the gaussians `order` into `rows`, as `_kernels` lays them out.

    The extents are those of the ellipse on which alpha is 1 / 255, of the conic as rounded, never beyond `radii`.
    """
    for r in range(order.size):
        g = order[r]
        a, b, c = np.float64(conics[g, 0]), np.float64(conics[g, 1]), np.float64(conics[g, 2])
        level, determinant = 2 * math.log(opacities[g] / MIN_ALPHA), a * c - b * b
        extent_x, extent_y = np.float64(radii[g, 0]), np.float64(radii[g, 1])
        if determinant > 0:
            extent_x = min(extent_x, math.sqrt(level * c / determinant) + _SLACK)
            extent_y = min(extent_y, math.sqrt(level * a / determinant) + _SLACK)
        row = rows[r]
        row[0], row[1] = means2d[g, 0], means2d[g, 1]
        row[2], row[3], row[4] = conics[g, 0], conics[g, 1], conics[g, 2]
        row[5], row[6], row[7] = opacities[g], extent_x, extent_y
        row[8], row[9], row[10], row[11] = colors[g, 0], colors[g, 1], colors[g, 2], colors[g, 3]


@njit(inline="always")
def _tile_rows(row, tiles_y):
    """The range of tile rows that a gaussian touches."""
    first = math.ceil(row[1] - row[7] - 0.5) // TILE
    last = math.floor(row[1] + row[7] - 0.5) // TILE + 1
    return _clip(first, 0, tiles_y), _clip(last, 0, tiles_y)


@njit(inline="always")
def _tile_columns(row, tile_row, tiles_x):
    """The range of tiles of one tile row that a gaussian touches: its ellipse's, not its bounding box's."""
    x, y, extent_x, extent_y = np.float64(row[0]), np.float64(row[1]), np.float64(row[6]), np.float64(row[7])
    left, right = -extent_x, extent_x
    first = math.ceil(x + left - 0.5) // TILE
    last = math.floor(x + right - 0.5) // TILE + 1
    a, b, c = np.float64(row[2]), np.float64(row[3]), np.float64(row[4])
    if last - first > 1 and a * c > b * b:
        level = 2 * math.log(row[5] / MIN_ALPHA)
        # where the ellipse is widest, if that is inside this tile row; else its end nearest to that
        top = max(tile_row * TILE + 0.5 - y, -extent_y)
        bottom = min(tile_row * TILE + TILE - 0.5 - y, extent_y)
        widest = -b / c * extent_x
        for sign in (-1, 1):
            dy = _clip(sign * widest, top, bottom)
            if dy != sign * widest:
                root = math.sqrt(max(b * b * dy * dy - a * (c * dy * dy - level), 0.0))
                reach = (-b * dy + sign * root) / a + sign * _SLACK
                if sign < 0:
                    left = max(left, reach)
                else:
                    right = min(right, reach)
        first = math.ceil(x + left - 0.5) // TILE
        last = math.floor(x + right - 0.5) // TILE + 1
    first = _clip(first, 0, tiles_x)
    return first, max(_clip(last, 0, tiles_x), first)


@njit(
    "(int64[::1], float32[:, ::1], int64, int64, int64, int64[::1], int32[::1])",
    nogil=True,
    cache=True,
    error_model="numpy",
)
def count(order, rows, n, tiles_x, tiles_y, pair_ends, tile_sizes):
    """Count pairs: `tile_sizes[t]` gaussians touch tile t; those of `rows[:r + 1]` touch `pair_ends[r]` tiles."""
    pairs = 0
    for r in range(order.size):
        base = order[r] // n * tiles_x * tiles_y
        first_row, last_row = _tile_rows(rows[r], tiles_y)
        for tile_row in range(first_row, last_row):
            first, last = _tile_columns(rows[r], tile_row, tiles_x)
            for column in range(first, last):
                tile_sizes[base + tile_row * tiles_x + column] += np.int32(1)
            pairs += last - first
        pair_ends[r] = pairs


@njit(
    "(int64[::1], float32[:, ::1], int64, int64, int64, int32[::1], int32[::1], int32[::1])",
    nogil=True,
    cache=True,
    error_model="numpy",
)
def fill(order, rows, n, tiles_x, tiles_y, cursors, ids, slots):
    """Append each gaussian to the list `ids` of the tiles it touches, in order of depth.

    `cursors[t]` is where the list of tile t begins. `slots` is the number of the pair in order of gaussians, so that
    all gradient rows of one gaussian lie side by side.
    """
    pair = 0
    for r in range(order.size):
        base = order[r] // n * tiles_x * tiles_y
        first_row, last_row = _tile_rows(rows[r], tiles_y)
        for tile_row in range(first_row, last_row):
            first, last = _tile_columns(rows[r], tile_row, tiles_x)
            for tile in range(base + tile_row * tiles_x + first, base + tile_row * tiles_x + last):
                at = cursors[tile]
                ids[at], slots[at] = r, pair
                cursors[tile] = at + np.int32(1)
                pair += 1


@njit("(float32[:, ::1], int64[::1], int64[::1], float32[:, ::1])", nogil=True, cache=True, fastmath={"reassoc"})
def gather(gradients, pair_ends, order, totals):
    """Add up the gradient rows of each gaussian's pairs into its row of `totals` [C * N, GRADIENT_ROW]."""
    begin = 0
    for r in range(order.size):
        total = totals[order[r]]
        for pair in range(begin, pair_ends[r]):
            for j in range(total.size):
                total[j] += gradients[pair, j]
        begin = pair_ends[r]
