"""Numba kernels: a tile of 16 x 16 pixels at a time, gaussians outside, pixels inside.

The inner loops are flat, branch-free runs over the rows of the tile that an ellipse touches, so that LLVM makes SIMD of
them. Three habits keep them so: the state of a tile is planes of 256 floats in one array, at constant offsets and with
*unsigned* indices (a negative index would wrap around, and that test blocks vectorisation); masks are selects; exp is a
polynomial (no vector exp comes with Numba). Each kernel has exactly one signature: two processes that fill Numba's cache
at the same time then write the same thing.
"""

import math

import numpy as np
from numba import njit

from nifi_ns.rasterize._constants import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE

TILE = 16
"""Side of a tile in pixels."""
CHANNELS = 4
"""Colour channels drawn in one pass: RGB and depth."""

# Columns of a gaussian's row, written by `pack`: everything a tile needs, 48 bytes in depth order
_X, _Y, _A, _B, _C, _OPACITY, _EXTENT_X, _EXTENT_Y, _COLOR = range(9)
ROW = _COLOR + CHANNELS
# Columns of a pair's gradient row
_V_X, _V_Y, _V_ABS_X, _V_ABS_Y, _V_A, _V_B, _V_C, _V_OPACITY, _V_COLOR = range(9)
GRADIENT_ROW = _V_COLOR + CHANNELS

_PIXELS = TILE * TILE
# Planes of a tile's state
_PX, _PY, _T, _R, _0, _1, _2, _3 = (np.uint64(i * _PIXELS) for i in range(8))
_STATE = 8 * _PIXELS
_CHECK_EVERY = 32  # gaussians between two looks at whether any pixel is still alive

# No `nnan` or `ninf`: masked-out pixels may overflow before the select throws them away
_FASTMATH = {"reassoc", "contract", "arcp", "nsz", "afn"}
_f, _i, _n = "float32[:, ::1]", "int32[::1]", "int64"


@njit(inline="always")
def _exp_minus(s):  # noqa: ANN001, ANN202
    """exp(-s) for s in [0, 5.6] to about 2e-6: a minimax polynomial of exp(-s / 8), squared three times.

    Beyond 5.6 it stays at exp(-5.6), where alpha is below `MIN_ALPHA` whatever the opacity.
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


@njit(inline="always")
def _open_tile(state, left, top, width, height):
    """Set the planes of pixel centres, and the transmittance: 1, or -1 (dead) for pixels beyond the image."""
    for i in range(np.uint64(0), np.uint64(_PIXELS)):
        x, y = i % np.uint64(TILE), i // np.uint64(TILE)
        state[_PX + i] = np.float32(x) + np.float32(0.5)
        state[_PY + i] = np.float32(y) + np.float32(0.5)
        inside = x + left < width and y + top < height
        state[_T + i] = np.float32(1) if inside else np.float32(-1)


@njit(inline="always")
def _alive(state):
    """Whether any pixel of the tile still lets light through."""
    most = np.float32(-1)
    for i in range(np.uint64(0), np.uint64(_PIXELS)):
        most = max(most, state[_T + i])
    return most > 0


@njit(inline="always")
def _pixel_run(row_y, extent_y):
    """The flat range of pixels of the tile rows within `extent_y` of `row_y` (relative to the tile's top)."""
    first = min(max(math.ceil(row_y - extent_y - np.float32(0.5)), 0), TILE)
    last = min(max(math.floor(row_y + extent_y - np.float32(0.5)) + 1, first), TILE)
    return np.uint64(first * TILE), np.uint64(last * TILE)


@njit(
    f"({_f}, {_i}, {_i}, {_n}, {_n}, {_n}, {_n}, float32[:, :, :, ::1], float32[:, :, ::1], {_i}, {_n}, {_n})",
    nogil=True,
    cache=True,
    fastmath=_FASTMATH,
    error_model="numpy",
)
def draw(rows, offsets, ids, tiles_x, tiles_y, width, height, image, transmittance, drawn, first_tile, last_tile):
    """Blend the tiles [first_tile, last_tile) into `image` [C, H, W, 4] and `transmittance` [C, H, W].

    `rows` [V, ROW] are gaussians in order of depth; `ids[offsets[t] : offsets[t + 1]]` those of tile t. `drawn[t]` is
    set to how many of them were looked at before all pixels were opaque.
    """
    state = np.empty(_STATE, np.float32)
    min_alpha, max_alpha, min_t = np.float32(MIN_ALPHA), np.float32(MAX_ALPHA), np.float32(MIN_TRANSMITTANCE)
    one, half, zero = np.float32(1), np.float32(0.5), np.float32(0)
    for tile in range(first_tile, last_tile):
        camera, in_camera = tile // (tiles_x * tiles_y), tile % (tiles_x * tiles_y)
        left, top = in_camera % tiles_x * TILE, in_camera // tiles_x * TILE
        _open_tile(state, np.uint64(left), np.uint64(top), np.uint64(width), np.uint64(height))
        for i in range(_0, _3 + np.uint64(_PIXELS)):
            state[i] = zero
        start, end = offsets[tile], offsets[tile + 1]
        for k in range(start, end):
            if (k - start) % _CHECK_EVERY == 0 and not _alive(state):
                end = k
                break
            row = rows[ids[k]]
            x, y = row[_X] - np.float32(left), row[_Y] - np.float32(top)
            a, b, c, opacity = row[_A] * half, row[_B], row[_C] * half, row[_OPACITY]
            c0, c1, c2, c3 = row[_COLOR], row[_COLOR + 1], row[_COLOR + 2], row[_COLOR + 3]
            begin, stop = _pixel_run(y, row[_EXTENT_Y])
            for i in range(begin, stop):
                dx, dy, t = state[_PX + i] - x, state[_PY + i] - y, state[_T + i]
                s = dx * (a * dx + b * dy) + c * dy * dy
                alpha = min(max_alpha, opacity * _exp_minus(s))
                touched = (s >= zero) & (alpha >= min_alpha) & (t > zero)
                rest = t * (one - alpha)
                blended = touched & (rest > min_t)
                w = alpha * t if blended else zero
                state[_T + i] = (rest if blended else -t) if touched else t
                state[_0 + i] += w * c0
                state[_1 + i] += w * c1
                state[_2 + i] += w * c2
                state[_3 + i] += w * c3
        drawn[tile] = end - start
        for v in range(min(TILE, height - top)):
            for u in range(min(TILE, width - left)):
                i = np.uint64(v * TILE + u)
                transmittance[camera, top + v, left + u] = abs(state[_T + i])
                image[camera, top + v, left + u, 0] = state[_0 + i]
                image[camera, top + v, left + u, 1] = state[_1 + i]
                image[camera, top + v, left + u, 2] = state[_2 + i]
                image[camera, top + v, left + u, 3] = state[_3 + i]


@njit(
    f"({_f}, {_i}, {_i}, {_i}, {_n}, {_n}, {_n}, {_n}, {_i}, float32[:, :, :, ::1], float32[:, :, ::1], "
    f"{_f}, {_n}, {_n})",
    nogil=True,
    cache=True,
    fastmath=_FASTMATH,
    error_model="numpy",
)
def draw_backward(
    rows, offsets, ids, slots, tiles_x, tiles_y, width, height, drawn, v_image, rest, gradients, first_tile, last_tile
):
    """Write the gradient row of each (tile, gaussian) pair of the tiles [first_tile, last_tile) to `gradients`.

    Replays `draw` front to back. `v_image` [C, H, W, 4] is the loss's gradient of the image, and `rest` [C, H, W] is
    `sum(v_image * image) - T * v_alpha`: what the gaussians not yet replayed, and the light behind them, add to the
    loss. It replaces a division chain from the back and the channels' separate remainders.
    """
    state = np.empty(_STATE, np.float32)
    min_alpha, max_alpha, min_t = np.float32(MIN_ALPHA), np.float32(MAX_ALPHA), np.float32(MIN_TRANSMITTANCE)
    one, half, zero = np.float32(1), np.float32(0.5), np.float32(0)
    for tile in range(first_tile, last_tile):
        camera, in_camera = tile // (tiles_x * tiles_y), tile % (tiles_x * tiles_y)
        left, top = in_camera % tiles_x * TILE, in_camera // tiles_x * TILE
        _open_tile(state, np.uint64(left), np.uint64(top), np.uint64(width), np.uint64(height))
        for i in range(_R, _3 + np.uint64(_PIXELS)):
            state[i] = zero
        for v in range(min(TILE, height - top)):
            for u in range(min(TILE, width - left)):
                i = np.uint64(v * TILE + u)
                state[_R + i] = rest[camera, top + v, left + u]
                state[_0 + i] = v_image[camera, top + v, left + u, 0]
                state[_1 + i] = v_image[camera, top + v, left + u, 1]
                state[_2 + i] = v_image[camera, top + v, left + u, 2]
                state[_3 + i] = v_image[camera, top + v, left + u, 3]
        start = offsets[tile]
        for k in range(start + drawn[tile], offsets[tile + 1]):
            gradients[slots[k]] = zero
        for k in range(start, start + drawn[tile]):
            row = rows[ids[k]]
            x, y = row[_X] - np.float32(left), row[_Y] - np.float32(top)
            a, b, c, opacity = row[_A], row[_B], row[_C], row[_OPACITY]
            c0, c1, c2, c3 = row[_COLOR], row[_COLOR + 1], row[_COLOR + 2], row[_COLOR + 3]
            begin, stop = _pixel_run(y, row[_EXTENT_Y])
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
                shade = g0 * c0 + g1 * c1 + g2 * c2 + g3 * c3
                left_over = state[_R + i] - w * shade
                state[_R + i] = left_over
                # d loss / d alpha, times -alpha: the gradient of s. None through the clamp of alpha.
                moved = blended & (raw <= max_alpha)
                g = (left_over * alpha / (one - alpha) - w * shade) if moved else zero
                v_0 += w * g0
                v_1 += w * g1
                v_2 += w * g2
                v_3 += w * g3
                v_s += g
                g_x, g_y = g * s_x, g * s_y
                v_x -= g_x
                v_y -= g_y
                v_abs_x += abs(g_x)
                v_abs_y += abs(g_y)
                v_a += g * dx * dx
                v_b += g * dx * dy
                v_c += g * dy * dy
            out = gradients[slots[k]]
            out[_V_X], out[_V_Y], out[_V_ABS_X], out[_V_ABS_Y] = v_x, v_y, v_abs_x, v_abs_y
            out[_V_A], out[_V_B], out[_V_C] = half * v_a, v_b, half * v_c
            out[_V_OPACITY] = -v_s / opacity
            out[_V_COLOR], out[_V_COLOR + 1], out[_V_COLOR + 2], out[_V_COLOR + 3] = v_0, v_1, v_2, v_3
