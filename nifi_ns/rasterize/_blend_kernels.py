"""Numba kernels of blending, one tile of 16 x 16 pixels at a time: gaussians in the outer loop, pixels in the inner.

The inner loops are flat and branch-free, over the rows of the tile that an ellipse touches, so that LLVM vectorises
them. This depends on three things. The state of a tile is one array of 256-float planes at constant offsets, indexed
with *unsigned* integers: the test for a negative index, which wraps around, blocks vectorisation. Masks are selects.
exp is a polynomial, because Numba has no vectorised exp.
"""

import math
from typing import NamedTuple

import numpy as np

from nifi_ns.rasterize._compile import FAST, f1, f2, f3, f4, i1, inline, int64, kernel, named
from nifi_ns.rasterize._constants import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE
from nifi_ns.rasterize._tiles import CHANNELS, COLOR, EXTENT_Y, OPACITY, TILE, TILES, A, B, C, X, Y


class Images(NamedTuple):
    """The rendered images, or their gradients."""

    color: np.ndarray
    """[C, H, W, D]"""
    transmittance: np.ndarray
    """[C, H, W]"""


class Gradients(NamedTuple):
    """The gradients of the kernels' inputs, for all cameras."""

    means2d: np.ndarray
    """[C * N, 2]"""
    absolute: np.ndarray
    """[C * N, 2] sums over pixels of the absolute gradients of means2d."""
    conics: np.ndarray
    """[C * N, 3]"""
    opacities: np.ndarray
    """[C * N]"""
    colors: np.ndarray
    """[C * N, D]"""


_IMAGES = named(Images, f4, f3)
_GRADIENTS = named(Gradients, f2, f2, f2, f1, f2)
# Columns of a pair's row of gradients: 48 bytes
_V_X, _V_Y, _V_ABS_X, _V_ABS_Y, _V_A, _V_B, _V_C, _V_OPACITY, _V_COLOR = range(9)
GRADIENT_ROW = _V_COLOR + CHANNELS

_PIXELS = TILE * TILE
# Planes of a tile's state: pixel centres, transmittance, remaining contribution to the loss (backward), four channels
_PX, _PY, _T, _REST, _0, _1, _2, _3 = (np.uint64(i * _PIXELS) for i in range(8))
_STATE = 8 * _PIXELS
_CHECK_EVERY = 32  # gaussians between checks for a pixel that is not yet opaque


@inline
def _exp_minus(s):
    """Return exp(-s) for s in [0, 5.6] to about 2e-6: a minimax polynomial of exp(-s / 8), squared three times.

    Above 5.6 it stays at exp(-5.6), where alpha is below `MIN_ALPHA` at any opacity.
    """
    z = min(s, np.float32(5.6)) * np.float32(0.125)
    p = np.float32(-0.005846759852623419)
    p = p * z + np.float32(0.039772561965245104)
    p = p * z + np.float32(-0.16597397617328877)
    p = p * z + np.float32(0.4998825877768404)
    p = p * z + np.float32(-0.9999925393971938)
    p = p * z + np.float32(0.9999999205173591)
    p *= p
    p *= p
    return p * p


@inline
def _init_tile(state, left, top, width, height):
    """Set the pixel centres, and the transmittance: 1, or -1 (finished) for pixels outside the image."""
    for i in range(np.uint64(0), np.uint64(_PIXELS)):
        x, y = i % np.uint64(TILE), i // np.uint64(TILE)
        state[_PX + i] = np.float32(x) + np.float32(0.5)
        state[_PY + i] = np.float32(y) + np.float32(0.5)
        inside = x + left < width and y + top < height
        state[_T + i] = np.float32(1) if inside else np.float32(-1)


@inline
def _any_transparent(state):
    """Return whether any pixel of the tile is not yet opaque."""
    most = np.float32(-1)
    for i in range(np.uint64(0), np.uint64(_PIXELS)):
        most = max(most, state[_T + i])
    return most > 0


@inline
def _pixel_run(row_y, extent_y):
    """Return the flat range of pixels in the tile rows within `extent_y` of `row_y` (relative to the tile's top)."""
    first = min(max(math.ceil(row_y - extent_y - np.float32(0.5)), 0), TILE)
    last = min(max(math.floor(row_y + extent_y - np.float32(0.5)) + 1, first), TILE)
    return np.uint64(first * TILE), np.uint64(last * TILE)


@inline
def _tile_origin(tile, tiles):
    """Return the camera of a tile, and its left and top in pixels."""
    in_camera = tile % (tiles.across * tiles.down)
    return tile // (tiles.across * tiles.down), in_camera % tiles.across * TILE, in_camera // tiles.across * TILE


@inline
def _load_gradients(state, camera, left, top, channel, images, v_images):
    """Set the planes of the image's gradient, and of the total contribution of each pixel to the loss."""
    for i in range(_REST, _3 + np.uint64(_PIXELS)):
        state[i] = 0
    _, height, width, channels = images.color.shape
    for y in range(top, min(top + TILE, height)):
        for x in range(left, min(left + TILE, width)):
            i = np.uint64((y - top) * TILE + x - left)
            rest = images.transmittance[camera, y, x] * v_images.transmittance[camera, y, x]
            for j in range(min(channels - channel, CHANNELS)):
                v_color = v_images.color[camera, y, x, channel + j]
                state[_0 + np.uint64(j * _PIXELS) + i] = v_color
                rest += v_color * images.color[camera, y, x, channel + j]
            state[_REST + i] = rest


@inline
def _store(state, camera, left, top, channel, images):
    """Write the finished tile to the images."""
    _, height, width, channels = images.color.shape
    for y in range(top, min(top + TILE, height)):
        for x in range(left, min(left + TILE, width)):
            i = np.uint64((y - top) * TILE + x - left)
            images.transmittance[camera, y, x] = abs(state[_T + i])
            for j in range(min(channels - channel, CHANNELS)):
                images.color[camera, y, x, channel + j] = state[_0 + np.uint64(j * _PIXELS) + i]


@kernel(f2, TILES, int64, _IMAGES, i1, int64, int64, fastmath=FAST)
def draw(rows, tiles, channel, images, drawn, first_tile, last_tile):
    """Blend the tiles [first_tile, last_tile) of `rows` [V, ROW] into `images`, from colour channel `channel` on.

    `drawn[t]` is set to the number of gaussians of tile t that were processed before all its pixels were opaque.
    """
    state = np.empty(_STATE, np.float32)
    min_alpha, max_alpha, min_t = np.float32(MIN_ALPHA), np.float32(MAX_ALPHA), np.float32(MIN_TRANSMITTANCE)
    one, half, zero = np.float32(1), np.float32(0.5), np.float32(0)
    for tile in range(first_tile, last_tile):
        camera, left, top = _tile_origin(tile, tiles)
        _init_tile(state, np.uint64(left), np.uint64(top), np.uint64(tiles.width), np.uint64(tiles.height))
        for i in range(_0, _3 + np.uint64(_PIXELS)):
            state[i] = zero
        start, end = tiles.offsets[tile], tiles.offsets[tile + 1]
        for k in range(start, end):
            if (k - start) % _CHECK_EVERY == 0 and not _any_transparent(state):
                end = k
                break
            row = rows[tiles.ids[k]]
            x, y = row[X] - np.float32(left), row[Y] - np.float32(top)
            a, b, c, opacity = row[A] * half, row[B], row[C] * half, row[OPACITY]
            c0, c1, c2, c3 = row[COLOR], row[COLOR + 1], row[COLOR + 2], row[COLOR + 3]
            begin, stop = _pixel_run(y, row[EXTENT_Y])
            for i in range(begin, stop):
                dx, dy, t = state[_PX + i] - x, state[_PY + i] - y, state[_T + i]
                s = dx * (a * dx + b * dy) + c * dy * dy
                alpha = min(max_alpha, opacity * _exp_minus(s))
                touched = (s >= zero) & (alpha >= min_alpha) & (t > zero)
                through = t * (one - alpha)
                blended = touched & (through > min_t)
                w = alpha * t if blended else zero
                state[_T + i] = (through if blended else -t) if touched else t
                state[_0 + i] += w * c0
                state[_1 + i] += w * c1
                state[_2 + i] += w * c2
                state[_3 + i] += w * c3
        drawn[tile] = end - start
        _store(state, camera, left, top, channel, images)


@kernel(f2, TILES, int64, _IMAGES, _IMAGES, i1, f2, int64, int64, fastmath=FAST)
def draw_backward(rows, tiles, channel, images, v_images, drawn, gradients, first_tile, last_tile):
    """Write the gradient row of each pair of the tiles [first_tile, last_tile) to `gradients` [pairs, GRADIENT_ROW].

    Replays `draw` front to back. Each pixel keeps one number: what the remaining gaussians and the background
    contribute to the loss. This avoids repeated divisions from the back and a remainder for each channel.
    """
    state = np.empty(_STATE, np.float32)
    min_alpha, max_alpha, min_t = np.float32(MIN_ALPHA), np.float32(MAX_ALPHA), np.float32(MIN_TRANSMITTANCE)
    one, half, zero = np.float32(1), np.float32(0.5), np.float32(0)
    for tile in range(first_tile, last_tile):
        camera, left, top = _tile_origin(tile, tiles)
        _init_tile(state, np.uint64(left), np.uint64(top), np.uint64(tiles.width), np.uint64(tiles.height))
        _load_gradients(state, camera, left, top, channel, images, v_images)
        start, end = tiles.offsets[tile], tiles.offsets[tile] + drawn[tile]
        for k in range(end, tiles.offsets[tile + 1]):
            gradients[tiles.slots[k]] = zero
        for k in range(start, end):
            row = rows[tiles.ids[k]]
            x, y = row[X] - np.float32(left), row[Y] - np.float32(top)
            a, b, c, opacity = row[A], row[B], row[C], row[OPACITY]
            c0, c1, c2, c3 = row[COLOR], row[COLOR + 1], row[COLOR + 2], row[COLOR + 3]
            begin, stop = _pixel_run(y, row[EXTENT_Y])
            v_x = v_y = v_abs_x = v_abs_y = v_a = v_b = v_c = v_s = v_0 = v_1 = v_2 = v_3 = zero
            for i in range(begin, stop):
                dx, dy, t = state[_PX + i] - x, state[_PY + i] - y, state[_T + i]
                s_x, s_y = a * dx + b * dy, b * dx + c * dy  # derivatives of s
                s = half * (dx * s_x + dy * s_y)
                raw = opacity * _exp_minus(s)
                alpha = min(max_alpha, raw)
                touched = (s >= zero) & (alpha >= min_alpha) & (t > zero)
                through = t * (one - alpha)
                blended = touched & (through > min_t)
                w = alpha * t if blended else zero
                state[_T + i] = (through if blended else -t) if touched else t
                g0, g1, g2, g3 = state[_0 + i], state[_1 + i], state[_2 + i], state[_3 + i]
                contribution = w * (g0 * c0 + g1 * c1 + g2 * c2 + g3 * c3)
                rest = state[_REST + i] - contribution
                state[_REST + i] = rest
                # derivative of the loss by s: -alpha times its derivative by alpha; zero where alpha is clamped
                g = rest * alpha / (one - alpha) - contribution if blended & (raw <= max_alpha) else zero
                g_x, g_y = g * s_x, g * s_y
                v_x -= g_x
                v_y -= g_y
                v_abs_x += abs(g_x)
                v_abs_y += abs(g_y)
                v_a += g * dx * dx
                v_b += g * dx * dy
                v_c += g * dy * dy
                v_s += g
                v_0 += w * g0
                v_1 += w * g1
                v_2 += w * g2
                v_3 += w * g3
            out = gradients[tiles.slots[k]]
            out[_V_X], out[_V_Y], out[_V_ABS_X], out[_V_ABS_Y] = v_x, v_y, v_abs_x, v_abs_y
            out[_V_A], out[_V_B], out[_V_C] = half * v_a, v_b, half * v_c
            out[_V_OPACITY] = -v_s / opacity
            out[_V_COLOR], out[_V_COLOR + 1], out[_V_COLOR + 2], out[_V_COLOR + 3] = v_0, v_1, v_2, v_3


@kernel(f2, i1, i1, int64, _GRADIENTS, int64, int64)
def accumulate(gradients, ends, order, channel, totals, part, parts):
    """Add the gradient rows of each gaussian's pairs to `totals`, always in the same order, so that sums reproduce."""
    total = np.empty(GRADIENT_ROW, np.float32)
    channels = min(totals.colors.shape[1] - channel, CHANNELS)
    for r in range(len(order) * part // parts, len(order) * (part + 1) // parts):
        total[:] = 0
        for pair in range(ends[r - 1] if r > 0 else 0, ends[r]):
            for j in range(GRADIENT_ROW):
                total[j] += gradients[pair, j]
        g = order[r]
        for j in range(2):
            totals.means2d[g, j] += total[_V_X + j]
            totals.absolute[g, j] += total[_V_ABS_X + j]
        for j in range(3):
            totals.conics[g, j] += total[_V_A + j]
        totals.opacities[g] += total[_V_OPACITY]
        for j in range(channels):
            totals.colors[g, channel + j] += total[_V_COLOR + j]
