"""Depth-sorted lists of the gaussians in each tile, built by counting instead of sorting pairs."""

import math
from typing import NamedTuple

import numpy as np

from nifi_ns.rasterize._compile import f1, f2, i1, i3, inline, int64, kernel, named
from nifi_ns.rasterize._constants import MIN_ALPHA
from nifi_ns.rasterize._project_kernels import PROJECTED

TILE = 16
"""Side of a tile in pixels."""
CHANNELS = 4
"""Colour channels that are blended in one pass: RGB and depth."""
X, Y, A, B, C, OPACITY, EXTENT_X, EXTENT_Y, COLOR = range(9)
"""Columns of a gaussian's row (48 bytes): its mean, conic, opacity, half extents and colours."""
ROW = COLOR + CHANNELS
_SLACK = 0.01  # pixels added to an ellipse's extents, against rounding
_DIGIT, _DIGITS = 11, 3  # of the radix sort: 3 * 11 bits hold a float32


class Tiles(NamedTuple):
    """The gaussians of each tile, sorted by depth. Tiles are numbered by camera, then row by row."""

    offsets: np.ndarray
    """[tiles + 1] start of each tile's list."""
    ids: np.ndarray
    """[pairs] the gaussians in the lists, as row numbers."""
    slots: np.ndarray
    """[pairs] where the gradients of each pair are stored: numbered gaussian by gaussian, to be summed together."""
    across: int
    """Number of tiles in a row of one image."""
    down: int
    """Number of rows of tiles in one image."""
    width: int
    """Image width in pixels."""
    height: int
    """Image height in pixels."""


TILES = named(Tiles, i1, i1, i1, int64, int64, int64, int64)


@kernel(f1, i3, returns=i1)
def by_depth(depths, radii):
    """Return the indices of visible gaussians (radii [C, N, 2] not 0), nearest first. The sort is stable."""
    flat = radii.reshape(-1, 2)
    drawn = 0
    for i in range(len(flat)):
        drawn += flat[i, 0] > 0
    order, other = np.empty(drawn, np.int32), np.empty(drawn, np.int32)
    drawn = 0
    for i in range(len(flat)):
        if flat[i, 0] > 0:
            order[drawn] = i
            drawn += 1
    bits = depths.view(np.uint32)  # positive floats sort like their bits
    starts = np.empty(1 << _DIGIT, np.int64)
    for digit in range(_DIGITS):
        shift, mask = np.uint32(digit * _DIGIT), np.uint32((1 << _DIGIT) - 1)
        starts[:] = 0
        for i in order:
            starts[(bits[i] >> shift) & mask] += 1
        start = 0
        for value in range(len(starts)):
            start, starts[value] = start + starts[value], start
        for i in order:
            value = (bits[i] >> shift) & mask
            other[starts[value]] = i
            starts[value] += 1
        order, other = other, order
    return order


@kernel(i1, PROJECTED, i3, f2, int64, f2, int64, int64)
def pack(order, projected, radii, colors, channel, rows, part, parts):
    """Gather the gaussians `order`, with the colours [C * N, D] from `channel` on, into `rows` [len(order), ROW].

    Extents are those of the ellipse on which alpha is `MIN_ALPHA`, for the rounded conic, limited to `radii`.
    """
    means2d, conics = projected.means2d.reshape(-1, 2), projected.conics.reshape(-1, 3)
    opacities, sizes = projected.opacities.reshape(-1), radii.reshape(-1, 2)
    for r in range(len(order) * part // parts, len(order) * (part + 1) // parts):
        g, row = order[r], rows[r]
        a, b, c = np.float64(conics[g, 0]), np.float64(conics[g, 1]), np.float64(conics[g, 2])
        extent_x, extent_y = np.float64(sizes[g, 0]), np.float64(sizes[g, 1])
        level, determinant = 2 * math.log(opacities[g] / MIN_ALPHA), a * c - b * b
        if determinant > 0:
            extent_x = min(extent_x, math.sqrt(level * c / determinant) + _SLACK)
            extent_y = min(extent_y, math.sqrt(level * a / determinant) + _SLACK)
        row[X], row[Y], row[OPACITY] = means2d[g, 0], means2d[g, 1], opacities[g]
        row[A], row[B], row[C] = a, b, c
        row[EXTENT_X], row[EXTENT_Y] = extent_x, extent_y
        for j in range(CHANNELS):
            row[COLOR + j] = colors[g, channel + j] if channel + j < colors.shape[1] else 0


@inline
def _clip(value, low, high):
    return min(max(value, low), high)


@inline
def _span(centre, low, high, tiles):
    """Return the range of tiles whose pixel centres reach into [centre + low, centre + high]."""
    first = _clip(math.ceil(centre + low - 0.5) // TILE, 0, tiles)
    return first, _clip(math.floor(centre + high - 0.5) // TILE + 1, first, tiles)


@inline
def _columns(row, tile_row, across):
    """Return the range of tiles of one tile row that a gaussian's ellipse (not its bounding box) touches."""
    x, extent_x = np.float64(row[X]), np.float64(row[EXTENT_X])
    first, last = _span(x, -extent_x, extent_x, across)
    a, b, c = np.float64(row[A]), np.float64(row[B]), np.float64(row[C])
    if last - first < 2 or a * c <= b * b:
        return first, last
    y, extent_y = np.float64(row[Y]), np.float64(row[EXTENT_Y])
    top, bottom = max(tile_row * TILE + 0.5 - y, -extent_y), min(tile_row * TILE + TILE - 0.5 - y, extent_y)
    level = 2 * math.log(row[OPACITY] / MIN_ALPHA)
    # The ellipse's rightmost point is at dy = turn, its leftmost at -turn. If that point is in another tile row, the
    # extreme within this row is at the edge nearest to it.
    turn = -b / c * extent_x
    low, high = -extent_x, extent_x
    dy = _clip(turn, top, bottom)
    if dy != turn:
        high = min(high, (math.sqrt(max(b * b * dy * dy - a * (c * dy * dy - level), 0.0)) - b * dy) / a + _SLACK)
    dy = _clip(-turn, top, bottom)
    if dy != -turn:
        low = max(low, (-math.sqrt(max(b * b * dy * dy - a * (c * dy * dy - level), 0.0)) - b * dy) / a - _SLACK)
    return _span(x, low, high, across)


@kernel(i1, f2, int64, int64, int64, i1, i1)
def count(order, rows, n, across, down, ends, sizes):
    """Set `ends[r]` to the number of pairs of the gaussians up to r, and `sizes[t]` to that of tile t."""
    pairs = 0
    for r in range(len(order)):
        row, base = rows[r], order[r] // n * across * down
        first_row, last_row = _span(row[Y], -row[EXTENT_Y], row[EXTENT_Y], down)
        for tile_row in range(first_row, last_row):
            first, last = _columns(row, tile_row, across)
            for tile in range(base + tile_row * across + first, base + tile_row * across + last):
                sizes[tile] += 1
                pairs += 1
        ends[r] = pairs


@kernel(i1, f2, int64, TILES)
def fill(order, rows, n, tiles):
    """Append each gaussian to the lists of the tiles that it touches, nearest first."""
    cursors = tiles.offsets[:-1].copy()
    pair = 0
    for r in range(len(order)):
        row, base = rows[r], order[r] // n * tiles.across * tiles.down
        first_row, last_row = _span(row[Y], -row[EXTENT_Y], row[EXTENT_Y], tiles.down)
        for tile_row in range(first_row, last_row):
            first, last = _columns(row, tile_row, tiles.across)
            for tile in range(base + tile_row * tiles.across + first, base + tile_row * tiles.across + last):
                at = cursors[tile]
                tiles.ids[at], tiles.slots[at] = r, pair
                cursors[tile] = at + 1
                pair += 1


def list_tiles(
    order: np.ndarray, rows: np.ndarray, cameras: int, n: int, width: int, height: int
) -> tuple[Tiles, np.ndarray]:
    """Return the tiles of the images of `cameras`, and the number of pairs up to each row [len(order)]."""
    across, down = -(-width // TILE), -(-height // TILE)
    ends, sizes = np.empty(len(order), np.int32), np.zeros(cameras * across * down, np.int32)
    count(order, rows, n, across, down, ends, sizes)
    offsets = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(sizes, out=offsets[1:])
    ids, slots = (np.empty(offsets[-1], np.int32) for _ in range(2))
    tiles = Tiles(offsets, ids, slots, across, down, width, height)
    fill(order, rows, n, tiles)
    return tiles, ends
