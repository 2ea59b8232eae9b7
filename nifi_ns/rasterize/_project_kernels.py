"""Numba kernels of EWA projection (Zwicker et al. 2001) and its gradient, one gaussian at a time, following gsplat.

Vectors are tuples, which stay in registers. Matrices are tuples of rows. A kernel processes part `part` of `parts` of
the gaussians. Arithmetic is float64, which costs little here and keeps thin gaussians accurate.
"""

import math
from typing import NamedTuple

import numpy as np

from nifi_ns.rasterize._compile import boolean, d4, f1, f2, f3, i3, inline, int64, kernel, named, real
from nifi_ns.rasterize._constants import FRUSTUM_MARGIN, MAX_EXTENT, MIN_ALPHA


class Gaussians(NamedTuple):
    """The gaussians to project, or their gradients."""

    means: np.ndarray
    """[N, 3]"""
    quats: np.ndarray
    """[N, 4]"""
    scales: np.ndarray
    """[N, 3]"""
    opacities: np.ndarray
    """[N]"""


class Cameras(NamedTuple):
    """The cameras to project to."""

    viewmats: np.ndarray
    """[C, 4, 4]"""
    Ks: np.ndarray
    """[C, 3, 3]"""
    width: int
    height: int


class Settings(NamedTuple):
    """The settings of a projection, which are arguments of `gsplat.rasterization`."""

    near_plane: float
    far_plane: float
    radius_clip: float
    eps2d: float
    antialiased: bool


class Projected(NamedTuple):
    """The projected gaussians, or their gradients."""

    means2d: np.ndarray
    """[C, N, 2]"""
    depths: np.ndarray
    """[C, N]"""
    conics: np.ndarray
    """[C, N, 3]"""
    opacities: np.ndarray
    """[C, N]"""


_GAUSSIANS = named(Gaussians, f2, f2, f2, f1)
_CAMERAS = named(Cameras, f3, f3, int64, int64)
_SETTINGS = named(Settings, real, real, real, real, boolean)
PROJECTED = named(Projected, f3, f2, f3, f2)


@inline
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@inline
def _add(a, b):
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@inline
def _times(a, k):
    return a[0] * k, a[1] * k, a[2] * k


@inline
def _combine(rows, k):
    """Return K @ rows."""
    return _add(_add(_times(rows[0], k[0]), _times(rows[1], k[1])), _times(rows[2], k[2]))


@inline
def _transpose(m):
    return (m[0][0], m[1][0], m[2][0]), (m[0][1], m[1][1], m[2][1]), (m[0][2], m[1][2], m[2][2])


@inline
def _row(m, i):
    return np.float64(m[i, 0]), np.float64(m[i, 1]), np.float64(m[i, 2])


@inline
def _rotation(q):
    """Return the rotation matrix of a unit quaternion, wxyz."""
    w, x, y, z = q
    return (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )


@inline
def _rotation_backward(q, v):
    """Return the gradient of a unit quaternion, given the gradient `v` of its rotation matrix."""
    w, x, y, z = q
    a, b, c = v[1][0] + v[0][1], v[0][2] + v[2][0], v[2][1] + v[1][2]
    k, l, m = v[1][0] - v[0][1], v[0][2] - v[2][0], v[2][1] - v[1][2]
    return (
        2 * (z * k + y * l + x * m),
        2 * (y * a + z * b + w * m - 2 * x * (v[1][1] + v[2][2])),
        2 * (x * a + z * c + w * l - 2 * y * (v[0][0] + v[2][2])),
        2 * (x * b + y * c + w * k - 2 * z * (v[0][0] + v[1][1])),
    )


@inline
def _unit(quats, i):
    """Return quaternion i normalised, and one over its length."""
    w, x, y, z = np.float64(quats[i, 0]), np.float64(quats[i, 1]), np.float64(quats[i, 2]), np.float64(quats[i, 3])
    k = 1 / max(math.sqrt(w * w + x * x + y * y + z * z), 1e-12)
    return (w * k, x * k, y * k, z * k), k


@inline
def _limits(K, width, height):
    """Return the limits of linearisation in x / z and y / z: low x, high x, low y, high y."""
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = FRUSTUM_MARGIN * 0.5 * width / fx, FRUSTUM_MARGIN * 0.5 * height / fy
    low_x, high_x = -cx / fx - margin_x, (width - cx) / fx + margin_x
    low_y, high_y = -cy / fy - margin_y, (height - cy) / fy + margin_y
    return low_x, high_x, low_y, high_y


@inline
def _shape(rotation, scale, view, u, v, fx_z, fy_z):
    """Return the gaussian's axes in the camera's frame (as columns), and their two rows in the image, all scaled."""
    scaled = (
        (rotation[0][0] * scale[0], rotation[0][1] * scale[1], rotation[0][2] * scale[2]),
        (rotation[1][0] * scale[0], rotation[1][1] * scale[1], rotation[1][2] * scale[2]),
        (rotation[2][0] * scale[0], rotation[2][1] * scale[1], rotation[2][2] * scale[2]),
    )
    axes = _combine(scaled, view[0]), _combine(scaled, view[1]), _combine(scaled, view[2])
    p = _times(_add(axes[0], _times(axes[2], -u)), fx_z)
    q = _times(_add(axes[1], _times(axes[2], -v)), fy_z)
    return scaled, axes, p, q


@inline
def _area(p, q):
    """Return the covariance's determinant as a squared cross product: p.p * q.q - (p.q)^2 loses precision if thin."""
    cross = (p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0])
    return _dot(cross, cross)


@kernel(_GAUSSIANS, _CAMERAS, _SETTINGS, PROJECTED, i3, int64, int64)
def project(gaussians, cameras, settings, out, radii, part, parts):
    """Project into `out` and `radii` [C, N, 2], both initially zero. Rows of invisible gaussians stay zero."""
    width, height, n = cameras.width, cameras.height, len(gaussians.means)
    eps2d = settings.eps2d
    for c in range(len(cameras.viewmats)):
        view, t, K = cameras.viewmats[c], cameras.viewmats[c, :, 3], cameras.Ks[c]
        rotation, fx, fy = (_row(view, 0), _row(view, 1), _row(view, 2)), K[0, 0], K[1, 1]
        low_x, high_x, low_y, high_y = _limits(K, width, height)
        for i in range(n * part // parts, n * (part + 1) // parts):
            mean = _row(gaussians.means, i)
            z = _dot(rotation[2], mean) + t[2]
            if not settings.near_plane <= z <= settings.far_plane:
                continue
            u, v = (_dot(rotation[0], mean) + t[0]) / z, (_dot(rotation[1], mean) + t[1]) / z
            x, y = fx * u + K[0, 2], fy * v + K[1, 2]
            u, v = min(max(u, low_x), high_x), min(max(v, low_y), high_y)
            quat, _ = _unit(gaussians.quats, i)
            _, _, p, q = _shape(_rotation(quat), _row(gaussians.scales, i), rotation, u, v, fx / z, fy / z)
            xx, xy, yy, area = _dot(p, p), _dot(p, q), _dot(q, q), _area(p, q)
            determinant = area + eps2d * (xx + yy) + eps2d * eps2d
            xx, yy = xx + eps2d, yy + eps2d
            opacity = gaussians.opacities[i]
            if settings.antialiased:
                opacity *= math.sqrt(area / determinant)
            if not (opacity >= MIN_ALPHA and 0 < determinant < np.inf):
                continue
            extent = min(MAX_EXTENT, math.sqrt(2 * math.log(opacity / MIN_ALPHA)))
            radius_x, radius_y = math.ceil(extent * math.sqrt(xx)), math.ceil(extent * math.sqrt(yy))
            on_screen = x + radius_x > 0 and x - radius_x < width and y + radius_y > 0 and y - radius_y < height
            if not on_screen or max(radius_x, radius_y) <= settings.radius_clip:
                continue
            out.means2d[c, i, 0], out.means2d[c, i, 1] = x, y
            out.depths[c, i], out.opacities[c, i] = z, opacity
            out.conics[c, i, 0], out.conics[c, i, 1], out.conics[c, i, 2] = (
                yy / determinant,
                -xy / determinant,
                xx / determinant,
            )
            # at least 1 for a visible gaussian, and at most what fits an int32
            radii[c, i, 0], radii[c, i, 1] = min(max(radius_x, 1), 2**30), min(max(radius_y, 1), 2**30)


@inline
def _conic_backward(p, q, eps2d, v_conic, v_share):
    """Return the gradient of the image covariance, given those of its inverse and of `share` (`v_share`).

    `share` is the factor of opacities in antialiasing, sqrt(area / determinant). It is returned too.
    """
    xx, xy, yy, area = _dot(p, p), _dot(p, q), _dot(q, q), _area(p, q)
    determinant = area + eps2d * (xx + yy) + eps2d * eps2d
    # d conic = -conic @ d covariance @ conic
    a, b, c = (yy + eps2d) / determinant, -xy / determinant, (xx + eps2d) / determinant
    v_a, v_b, v_c = v_conic
    v_xx = -(v_a * a * a + v_b * a * b + v_c * b * b)
    v_xy = -(2 * v_a * a * b + v_b * (a * c + b * b) + 2 * v_c * b * c)
    v_yy = -(v_a * b * b + v_b * b * c + v_c * c * c)
    ratio = area / determinant
    share = math.sqrt(ratio)
    v_ratio = v_share / (2 * (share + 1e-6) * determinant)  # the 1e-6 is gsplat's
    v_xx += v_ratio * (yy * (1 - ratio) - ratio * eps2d)
    v_yy += v_ratio * (xx * (1 - ratio) - ratio * eps2d)
    v_xy -= v_ratio * 2 * xy * (1 - ratio)
    return v_xx, v_xy, v_yy, share


@kernel(_GAUSSIANS, _CAMERAS, _SETTINGS, i3, PROJECTED, _GAUSSIANS, d4, int64, int64)
def project_backward(gaussians, cameras, settings, radii, v_out, v_gaussians, v_viewmats, part, parts):
    """Add the gradients of `project`'s inputs to `v_gaussians`, and to `v_viewmats[part]` [C, 3, 4]."""
    width, height, n = cameras.width, cameras.height, len(gaussians.means)
    for camera in range(len(cameras.viewmats)):
        view, t, K = cameras.viewmats[camera], cameras.viewmats[camera, :, 3], cameras.Ks[camera]
        rotation, fx, fy = (_row(view, 0), _row(view, 1), _row(view, 2)), K[0, 0], K[1, 1]
        to_world = _transpose(rotation)
        low_x, high_x, low_y, high_y = _limits(K, width, height)
        v_view = v_viewmats[part, camera]
        for i in range(n * part // parts, n * (part + 1) // parts):
            if radii[camera, i, 0] == 0:
                continue
            mean, scale = _row(gaussians.means, i), _row(gaussians.scales, i)
            z = _dot(rotation[2], mean) + t[2]
            u_mean, v_mean = (_dot(rotation[0], mean) + t[0]) / z, (_dot(rotation[1], mean) + t[1]) / z
            u, v = min(max(u_mean, low_x), high_x), min(max(v_mean, low_y), high_y)
            fx_z, fy_z = fx / z, fy / z
            quat, inverse_length = _unit(gaussians.quats, i)
            r = _rotation(quat)
            scaled, axes, p, q = _shape(r, scale, rotation, u, v, fx_z, fy_z)

            v_opacity = v_out.opacities[camera, i]
            v_share = v_opacity * gaussians.opacities[i] if settings.antialiased else 0.0
            v_xx, v_xy, v_yy, share = _conic_backward(p, q, settings.eps2d, _row(v_out.conics[camera], i), v_share)
            v_gaussians.opacities[i] += v_opacity * share if settings.antialiased else v_opacity

            # the two rows p, q of the projected axes
            v_p = _add(_times(p, 2 * v_xx), _times(q, v_xy))
            v_q = _add(_times(q, 2 * v_yy), _times(p, v_xy))
            v_axes = (_times(v_p, fx_z), _times(v_q, fy_z), _add(_times(v_p, -fx_z * u), _times(v_q, -fy_z * v)))
            v_mx, v_my = v_out.means2d[camera, i, 0], v_out.means2d[camera, i, 1]
            v_u, v_v = fx * v_mx, fy * v_my
            if low_x <= u_mean <= high_x:
                v_u -= fx_z * _dot(v_p, axes[2])
            if low_y <= v_mean <= high_y:
                v_v -= fy_z * _dot(v_q, axes[2])
            v_z = v_out.depths[camera, i] - (_dot(p, v_p) + _dot(q, v_q) + u_mean * v_u + v_mean * v_v) / z
            v_seen = (v_u / z, v_v / z, v_z)

            # axes = rotation @ r @ diag(scale)
            v_scaled = _combine(v_axes, to_world[0]), _combine(v_axes, to_world[1]), _combine(v_axes, to_world[2])
            v_r = (
                (v_scaled[0][0] * scale[0], v_scaled[0][1] * scale[1], v_scaled[0][2] * scale[2]),
                (v_scaled[1][0] * scale[0], v_scaled[1][1] * scale[1], v_scaled[1][2] * scale[2]),
                (v_scaled[2][0] * scale[0], v_scaled[2][1] * scale[1], v_scaled[2][2] * scale[2]),
            )
            v_unit = _rotation_backward(quat, v_r)
            along = v_unit[0] * quat[0] + v_unit[1] * quat[1] + v_unit[2] * quat[2] + v_unit[3] * quat[3]
            v_mean = _combine(rotation, v_seen)
            columns, v_columns = _transpose(r), _transpose(v_scaled)
            for j in range(3):
                v_gaussians.means[i, j] += v_mean[j]
                v_gaussians.scales[i, j] += _dot(columns[j], v_columns[j])
                v_view[j, 3] += v_seen[j]
                for k in range(3):
                    v_view[j, k] += v_seen[j] * mean[k] + _dot(v_axes[j], scaled[k])
            for j in range(4):
                v_gaussians.quats[i, j] += (v_unit[j] - along * quat[j]) * inverse_length
