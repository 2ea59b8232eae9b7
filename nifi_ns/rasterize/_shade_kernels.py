"""Numba kernels of colours from real spherical harmonics (SH) up to degree 3, with gsplat's order and signs.

The basis follows Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2013. A kernel processes part `part` of `parts`
of the gaussians.
"""

import math

import numpy as np

from nifi_ns.rasterize._compile import d3, f2, f3, f4, i3, inline, int64, kernel

_DEGREE_0 = np.float32(0.28209479177387814)
_DEGREE_1 = np.float32(0.48860251190292)
_XY, _ZZ, _ZZ_OFFSET = np.float32(1.092548430592079), np.float32(0.9461746957575601), np.float32(0.3153915652525201)
_XXY, _XYZ = np.float32(0.5900435899266435), np.float32(1.445305721320277)
_XZZ, _XZZ_OFFSET = np.float32(2.285228997322329), np.float32(0.4570457994644658)
_ZZZ, _ZZZ_OFFSET = np.float32(1.865881662950577), np.float32(1.119528997770346)
_HALF, _ONE, _TWO, _THREE = np.float32(0.5), np.float32(1), np.float32(2), np.float32(3)
_MAX_BASIS = 16


@inline
def _direction(means, i, centre):
    """Return the unit vector from the camera to gaussian i, and one over its distance."""
    x, y, z = means[i, 0] - centre[0], means[i, 1] - centre[1], means[i, 2] - centre[2]
    k = _ONE / max(math.sqrt(x * x + y * y + z * z), np.float32(1e-12))
    return x * k, y * k, z * k, k


@inline
def _sh_basis(degree, x, y, z, basis):
    """Write the (degree + 1)^2 SH basis functions of a unit vector to `basis`."""
    basis[0] = _DEGREE_0
    if degree >= 1:
        basis[1], basis[2], basis[3] = -_DEGREE_1 * y, _DEGREE_1 * z, -_DEGREE_1 * x
    if degree >= 2:
        basis[4], basis[5] = _XY * x * y, -_XY * y * z
        basis[6] = _ZZ * z * z - _ZZ_OFFSET
        basis[7], basis[8] = -_XY * x * z, _HALF * _XY * (x * x - y * y)
    if degree >= 3:
        outer = _XZZ_OFFSET - _XZZ * z * z
        basis[9] = -_XXY * y * (_THREE * x * x - y * y)
        basis[10] = _TWO * _XYZ * x * y * z
        basis[11], basis[12], basis[13] = outer * y, z * (_ZZZ * z * z - _ZZZ_OFFSET), outer * x
        basis[14] = _XYZ * z * (x * x - y * y)
        basis[15] = -_XXY * x * (x * x - _THREE * y * y)


@inline
def _sh_basis_backward(degree, x, y, z, v):
    """Return the gradient of the vector, given that of its SH basis `v`; correct up to a multiple of the vector."""
    v_x, v_y, v_z = np.float32(0), np.float32(0), np.float32(0)
    if degree >= 1:
        v_x, v_y, v_z = -_DEGREE_1 * v[3], -_DEGREE_1 * v[1], _DEGREE_1 * v[2]
    if degree >= 2:
        v_x += _XY * (y * v[4] - z * v[7] + x * v[8])
        v_y += _XY * (x * v[4] - z * v[5] - y * v[8])
        v_z += _TWO * _ZZ * z * v[6] - _XY * (y * v[5] + x * v[7])
    if degree >= 3:
        outer, plane = _XZZ_OFFSET - _XZZ * z * z, x * x - y * y
        v_x += (
            outer * v[13]
            + _TWO * _XYZ * z * (y * v[10] + x * v[14])
            - _THREE * _XXY * (_TWO * x * y * v[9] + plane * v[15])
        )
        v_y += (
            outer * v[11]
            + _TWO * _XYZ * z * (x * v[10] - y * v[14])
            - _THREE * _XXY * (plane * v[9] - _TWO * x * y * v[15])
        )
        v_z += _XYZ * (_TWO * x * y * v[10] + plane * v[14]) - _TWO * _XZZ * z * (y * v[11] + x * v[13])
        v_z += (_THREE * _ZZZ * z * z - _ZZZ_OFFSET) * v[12]
    return v_x, v_y, v_z


@kernel(f2, f2, f4, i3, int64, f3, int64, int64)
def shade(means, centres, coefficients, radii, degree, colors, part, parts):
    """Write the colours [C, N, 3] of visible gaussians, from `coefficients` [1 or C, N, K, 3]."""
    n, k = len(means), (degree + 1) ** 2
    basis = np.zeros(_MAX_BASIS, np.float32)
    for c in range(len(centres)):
        coefficients_c = coefficients[c % len(coefficients)]  # shared by all cameras, or one per camera
        for i in range(n * part // parts, n * (part + 1) // parts):
            if radii[c, i, 0] == 0:
                continue
            x, y, z, _ = _direction(means, i, centres[c])
            _sh_basis(degree, x, y, z, basis)
            red = green = blue = _HALF
            for j in range(k):
                red += basis[j] * coefficients_c[i, j, 0]
                green += basis[j] * coefficients_c[i, j, 1]
                blue += basis[j] * coefficients_c[i, j, 2]
            colors[c, i, 0], colors[c, i, 1], colors[c, i, 2] = max(red, 0), max(green, 0), max(blue, 0)


@kernel(f2, f2, f4, i3, int64, f3, f3, f2, d3, f4, int64, int64)
def shade_backward(
    means, centres, coefficients, radii, degree, colors, v_colors, v_means, v_centres, v_coefficients, part, parts
):
    """Write the gradients of `shade` to `v_means` and `v_coefficients`, and add those to `v_centres[part]`."""
    n, k = len(means), (degree + 1) ** 2
    basis, v_basis = np.zeros(_MAX_BASIS, np.float32), np.zeros(_MAX_BASIS, np.float32)
    zero = np.float32(0)
    for i in range(n * part // parts, n * (part + 1) // parts):
        v_means[i] = zero
        v_coefficients[:, i] = zero
        for c in range(len(centres)):
            if radii[c, i, 0] == 0:
                continue
            mine, v_mine = coefficients[c % len(coefficients), i], v_coefficients[c % len(coefficients), i]
            x, y, z, inverse = _direction(means, i, centres[c])
            _sh_basis(degree, x, y, z, basis)
            red = v_colors[c, i, 0] if colors[c, i, 0] > 0 else zero
            green = v_colors[c, i, 1] if colors[c, i, 1] > 0 else zero
            blue = v_colors[c, i, 2] if colors[c, i, 2] > 0 else zero
            for j in range(k):
                v_basis[j] = red * mine[j, 0] + green * mine[j, 1] + blue * mine[j, 2]
                v_mine[j, 0] += basis[j] * red
                v_mine[j, 1] += basis[j] * green
                v_mine[j, 2] += basis[j] * blue
            v_x, v_y, v_z = _sh_basis_backward(degree, x, y, z, v_basis)
            along = v_x * x + v_y * y + v_z * z
            v_x, v_y, v_z = (v_x - along * x) * inverse, (v_y - along * y) * inverse, (v_z - along * z) * inverse
            v_means[i, 0] += v_x
            v_means[i, 1] += v_y
            v_means[i, 2] += v_z
            v_centres[part, c, 0] -= v_x
            v_centres[part, c, 1] -= v_y
            v_centres[part, c, 2] -= v_z
