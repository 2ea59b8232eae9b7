"""The shapes of the generated capture: ray intersections, in the coordinates of the object."""

import math
from typing import Any

from nifi_ns.capture._vectors import Vector, along, dot, jit, normalize

ELLIPSOID, BOX, FRUSTUM, TORUS, GROUND = range(5)
"""Shapes. `size` holds the radii (ellipsoid), the half extents (box), bottom and top radius and half height (frustum),
or major and minor radius (torus). The ground is the plane z = 0 and has no size."""

FAR = 1e9


@jit
def hit_ellipsoid(o: Vector, d: Vector, size: Any, start: float) -> tuple[float, float, Vector]:
    """Return both distances (nearest first, FAR for no hit beyond `start`) and the normal at the nearer hit."""
    q = (o[0] / size[0], o[1] / size[1], o[2] / size[2])
    e = (d[0] / size[0], d[1] / size[1], d[2] / size[2])
    a, b, c = dot(e, e), dot(q, e), dot(q, q) - 1.0
    h = b * b - a * c
    if h < 0.0:
        return FAR, FAR, (0.0, 0.0, 1.0)
    h = math.sqrt(h)
    near, far = (-b - h) / a, (-b + h) / a
    if near < start:
        near = far
    if near < start:
        return FAR, FAR, (0.0, 0.0, 1.0)
    p = along(q, e, near)
    return near, far, normalize((p[0] / size[0], p[1] / size[1], p[2] / size[2]))


@jit
def hit_box(o: Vector, d: Vector, size: Any, start: float) -> tuple[float, Vector]:
    near, far, axis, sign = -FAR, FAR, 0, 1.0
    for i in range(3):
        if abs(d[i]) < 1e-12:
            if abs(o[i]) > size[i]:
                return FAR, (0.0, 0.0, 1.0)
            continue
        s = 1.0 if d[i] < 0.0 else -1.0
        t0, t1 = (s * size[i] - o[i]) / d[i], (-s * size[i] - o[i]) / d[i]
        if t0 > near:
            near, axis, sign = t0, i, s
        far = min(far, t1)
    if near > far or near < start:
        return FAR, (0.0, 0.0, 1.0)
    return near, (sign if axis == 0 else 0.0, sign if axis == 1 else 0.0, sign if axis == 2 else 0.0)


@jit
def hit_frustum(o: Vector, d: Vector, size: Any, start: float) -> tuple[float, Vector]:
    """Intersect an upright cylinder, cone or frustum with caps."""
    slope = (size[1] - size[0]) / (2.0 * size[2])
    middle = 0.5 * (size[0] + size[1]) + slope * o[2]  # the radius at the height of the origin
    a = d[0] * d[0] + d[1] * d[1] - slope * slope * d[2] * d[2]
    b = o[0] * d[0] + o[1] * d[1] - slope * d[2] * middle
    c = o[0] * o[0] + o[1] * o[1] - middle * middle
    best, normal = FAR, (0.0, 0.0, 1.0)
    h = b * b - a * c
    if h >= 0.0 and abs(a) > 1e-12:
        h = math.sqrt(h)
        for t in ((-b - h) / a, (-b + h) / a):
            p = along(o, d, t)
            if start < t < best and abs(p[2]) <= size[2]:
                best, normal = t, normalize((p[0], p[1], -slope * math.sqrt(p[0] * p[0] + p[1] * p[1])))
    for side in (-1.0, 1.0):
        t = (side * size[2] - o[2]) / d[2] if abs(d[2]) > 1e-12 else FAR
        p = along(o, d, t)
        radius = size[1] if side > 0.0 else size[0]
        if start < t < best and p[0] * p[0] + p[1] * p[1] <= radius * radius:
            best, normal = t, (0.0, 0.0, side)
    return best, normal


@jit
def hit_torus(o: Vector, d: Vector, size: Any, start: float) -> tuple[float, Vector]:
    """Intersect by sphere tracing (Hart 1996): step by the distance to the torus until it is almost zero."""
    t = max(start, -dot(o, d) - size[0] - size[1])
    for _ in range(64):
        p = along(o, d, t)
        ring = math.sqrt(p[0] * p[0] + p[1] * p[1])
        distance = math.sqrt((ring - size[0]) ** 2 + p[2] * p[2]) - size[1]
        if distance < 1e-4:
            k = 1.0 - size[0] / max(ring, 1e-9)
            return (t, normalize((p[0] * k, p[1] * k, p[2]))) if t > start else (FAR, (0.0, 0.0, 1.0))
        t += distance
        if t > 2.0 * (size[0] + size[1]) - dot(o, d):
            break
    return FAR, (0.0, 0.0, 1.0)
