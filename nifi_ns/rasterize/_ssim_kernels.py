"""Numba kernels of the structural similarity (SSIM) of two images and its gradient, with separable filters, by rows."""

import numpy as np

from nifi_ns.rasterize._compile import FAST, d1, f3, f4, inline, int64, kernel, real

TAPS = 11
_SIGMA = 1.5
_C1, _C2 = np.float32(0.01**2), np.float32(0.03**2)
_OFFSETS = np.arange(TAPS) - TAPS // 2
_WINDOW = np.exp(-(_OFFSETS**2) / (2 * _SIGMA**2))
_WINDOW = (_WINDOW / _WINDOW.sum()).astype(np.float32)


@inline
def _filter(line, out):
    """Filter `line` at the positions where the window fits."""
    for j in range(np.uint64(len(out))):
        total = np.float32(0)
        for k in range(np.uint64(TAPS)):
            total += _WINDOW[k] * line[j + k]
        out[j] = total


@kernel(f3, f3, d1, f4, int64, int64, fastmath=FAST)
def similarity(x, y, totals, derivatives, part, parts):
    """Add up the SSIM of x and y [P, H, W] at all positions of the window in `totals[part]`.

    With F a filtered image, m = F(x), n = F(y), SSIM is (2 m n + C1) (2 (F(xy) - m n) + C2) over
    (m^2 + n^2 + C1) (F(xx) - m^2 + F(yy) - n^2 + C2) (Wang et al. 2004). `derivatives` [3, P, H - 10, W - 10] is set
    to its derivatives by n, F(yy) and F(xy).
    """
    planes, height, width = x.shape
    rows, columns = height - TAPS + 1, width - TAPS + 1
    lines, filtered = np.empty((5, width), np.float32), np.empty((5, columns), np.float32)
    one, two, total = np.float32(1), np.float32(2), 0.0
    for i in range(planes * rows * part // parts, planes * rows * (part + 1) // parts):
        plane, row = i // rows, i % rows
        for j in range(np.uint64(width)):
            m = n = xx = yy = xy = np.float32(0)
            for k in range(TAPS):
                a, b = x[plane, row + k, j], y[plane, row + k, j]
                weighted_a, weighted_b = _WINDOW[k] * a, _WINDOW[k] * b
                m += weighted_a
                n += weighted_b
                xx += weighted_a * a
                yy += weighted_b * b
                xy += weighted_a * b
            lines[0, j], lines[1, j], lines[2, j], lines[3, j], lines[4, j] = m, n, xx, yy, xy
        for line in range(5):
            _filter(lines[line], filtered[line])
        of_row = np.float32(0)
        v_n, v_yy, v_xy = derivatives[0, plane, row], derivatives[1, plane, row], derivatives[2, plane, row]
        for j in range(np.uint64(columns)):
            m, n, xx, yy, xy = filtered[0, j], filtered[1, j], filtered[2, j], filtered[3, j], filtered[4, j]
            a1, a2 = two * m * n + _C1, two * (xy - m * n) + _C2
            b1, b2 = m * m + n * n + _C1, xx - m * m + yy - n * n + _C2
            scale = one / (b1 * b2)
            value = a1 * a2 * scale
            of_row += value
            v_n[j] = two * (m * (a2 - a1) * scale - n * value * (b2 - b1) * scale)
            v_yy[j] = -value * b1 * scale
            v_xy[j] = two * a1 * scale
        total += of_row
    totals[part] = total


@kernel(f3, f3, f4, real, f3, int64, int64, fastmath=FAST)
def similarity_backward(x, y, derivatives, scale, v_y, part, parts):
    """Write to `v_y` the gradient of the summed SSIM by y, times `scale`."""
    planes, height, width = x.shape
    rows, columns = height - TAPS + 1, width - TAPS + 1
    margin = TAPS - 1
    lines, filtered = np.zeros((3, width + margin), np.float32), np.empty((3, width), np.float32)
    factor, two = np.float32(scale), np.float32(2)
    for i in range(planes * height * part // parts, planes * height * (part + 1) // parts):
        plane, row = i // height, i % height
        lines[:, margin : margin + columns] = 0
        for at in range(max(row - margin, 0), min(row + 1, rows)):
            weight = factor * _WINDOW[row - at]
            for j in range(np.uint64(columns)):
                lines[0, np.uint64(margin) + j] += weight * derivatives[0, plane, at, j]
                lines[1, np.uint64(margin) + j] += weight * derivatives[1, plane, at, j]
                lines[2, np.uint64(margin) + j] += weight * derivatives[2, plane, at, j]
        for line in range(3):
            _filter(lines[line], filtered[line])
        for j in range(np.uint64(width)):
            products = two * y[plane, row, j] * filtered[1, j] + x[plane, row, j] * filtered[2, j]
            v_y[plane, row, j] = filtered[0, j] + products
