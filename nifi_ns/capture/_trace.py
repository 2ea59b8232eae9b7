"""The ray tracer of the generated capture: intersections and lighting."""

import math
from typing import Any, NamedTuple

import numpy as np

from nifi_ns.capture._shapes import BOX, ELLIPSOID, FAR, FRUSTUM, GROUND, hit_box, hit_ellipsoid, hit_frustum, hit_torus
from nifi_ns.capture._surfaces import cut_out, mean_albedo, sky, surface
from nifi_ns.capture._vectors import (
    Vector,
    add,
    along,
    dot,
    hashed,
    jit,
    mul,
    normalize,
    reflect,
    scale,
    sub,
)


class Scene(NamedTuple):
    """A scene for the compiled code: G groups of objects, each group within one bounding sphere."""

    shapes: np.ndarray
    """[N] shape numbers."""
    materials: np.ndarray
    """[N] material numbers."""
    centres: np.ndarray
    """[N, 3]"""
    sizes: np.ndarray
    """[N, 3]"""
    frames: np.ndarray
    """[N, 3, 3] rotations, world to object."""
    bounds: np.ndarray
    """[N] radii of the objects' bounding spheres."""
    groups: np.ndarray
    """[G, 2] start and end of each group's range of objects."""
    spheres: np.ndarray
    """[G, 4] centre and radius of each group's bounding sphere."""
    lattice: np.ndarray
    """[64, 64, 64] random numbers, the source of all textures."""
    sun: np.ndarray
    """[3] unit vector towards the sun."""


@jit
def _misses(origin: Vector, direction: Vector, x: float, y: float, z: float, radius: float, nearest: float) -> bool:
    """Return whether a ray misses a sphere, or meets it beyond `nearest`."""
    ox, oy, oz = x - origin[0], y - origin[1], z - origin[2]
    b = ox * direction[0] + oy * direction[1] + oz * direction[2]
    c = ox * ox + oy * oy + oz * oz - radius * radius
    if c <= 0.0:
        return False
    h = b * b - c
    return b <= 0.0 or h < 0.0 or b - math.sqrt(h) > nearest


@jit
def _rotate(m: Any, v: Vector) -> Vector:
    return (
        m[0, 0] * v[0] + m[0, 1] * v[1] + m[0, 2] * v[2],
        m[1, 0] * v[0] + m[1, 1] * v[1] + m[1, 2] * v[2],
        m[2, 0] * v[0] + m[2, 1] * v[1] + m[2, 2] * v[2],
    )


@jit
def _rotate_back(m: Any, v: Vector) -> Vector:
    return (
        m[0, 0] * v[0] + m[1, 0] * v[1] + m[2, 0] * v[2],
        m[0, 1] * v[0] + m[1, 1] * v[1] + m[2, 1] * v[2],
        m[0, 2] * v[0] + m[1, 2] * v[1] + m[2, 2] * v[2],
    )


@jit
def trace(scene: Scene, origin: Vector, direction: Vector, nearest: float) -> tuple[float, int, Vector]:
    """Return the first hit before `nearest`: distance, object (-1: none) and the unit normal, facing the ray."""
    start = 1e-4
    best, which, normal = nearest, -1, (0.0, 0.0, 1.0)
    for g in range(scene.groups.shape[0]):
        s = scene.spheres[g]
        if _misses(origin, direction, s[0], s[1], s[2], s[3], best):
            continue
        for i in range(scene.groups[g, 0], scene.groups[g, 1]):
            shape = scene.shapes[i]
            if shape == GROUND:
                t = -origin[2] / direction[2] if direction[2] < -1e-9 else FAR
                if start < t < best:
                    best, which, normal = t, i, (0.0, 0.0, 1.0)
                continue
            c = scene.centres[i]
            if _misses(origin, direction, c[0], c[1], c[2], scene.bounds[i], best):
                continue
            frame, size = scene.frames[i], scene.sizes[i]
            o = _rotate(frame, sub(origin, (c[0], c[1], c[2])))
            d = _rotate(frame, direction)
            if shape == ELLIPSOID:
                t, far, n = hit_ellipsoid(o, d, size, start)
                if t < best and cut_out(scene.lattice, scene.materials[i], along(o, d, t)):
                    t = far if far > t and not cut_out(scene.lattice, scene.materials[i], along(o, d, far)) else FAR
            elif shape == BOX:
                t, n = hit_box(o, d, size, start)
            elif shape == FRUSTUM:
                t, n = hit_frustum(o, d, size, start)
            else:
                t, n = hit_torus(o, d, size, start)
            if t < best:
                best, which, normal = t, i, _rotate_back(frame, n)
    if which >= 0 and dot(normal, direction) > 0.0:
        normal = scale(normal, -1.0)
    return best, which, normal


_SUN: Vector = (3.1, 2.75, 2.25)
_BLACK: Vector = (0.0, 0.0, 0.0)
_SKY_MEAN: Vector = (0.50, 0.60, 0.75)


@jit
def _frame(n: Vector) -> tuple[Vector, Vector]:
    """Return two unit vectors that are orthogonal to `n` and to each other."""
    a = (0.0, 0.0, 1.0) if abs(n[2]) < 0.9 else (1.0, 0.0, 0.0)
    t = normalize((a[1] * n[2] - a[2] * n[1], a[2] * n[0] - a[0] * n[2], a[0] * n[1] - a[1] * n[0]))
    return t, (n[1] * t[2] - n[2] * t[1], n[2] * t[0] - n[0] * t[2], n[0] * t[1] - n[1] * t[0])


@jit
def _sunlight(scene: Scene, p: Vector, n: Vector, u: float, v: float) -> Vector:
    """Return irradiance / pi from a point on the sun's disc, chosen by `u`, `v` in [0, 1)."""
    sun = (scene.sun[0], scene.sun[1], scene.sun[2])
    t, b = _frame(sun)
    radius, angle = 0.012 * math.sqrt(u), 2.0 * math.pi * v
    l = normalize(add(along(sun, t, radius * math.cos(angle)), scale(b, radius * math.sin(angle))))
    cosine = dot(n, l)
    if cosine <= 0.0 or trace(scene, along(p, n, 1e-3), l, FAR)[1] >= 0:
        return _BLACK
    return scale(_SUN, cosine)


@jit
def _secondary_radiance(scene: Scene, origin: Vector, direction: Vector, u: float, v: float) -> Vector:
    """Return radiance along a secondary ray: one sun ray, the mean sky instead of further bounces, no texture."""
    t, which, n = trace(scene, origin, direction, FAR)
    if which < 0:
        return sky(scene.lattice, direction, scene.sun)
    light = add(_sunlight(scene, along(origin, direction, t), n, u, v), scale(_SKY_MEAN, 0.45))
    return mul(mean_albedo(scene.materials[which]), light)


@jit
def _shade(scene: Scene, origin: Vector, direction: Vector, u: Any) -> tuple[Vector, Vector, Vector, Vector, float]:
    """Return the light along a camera ray, given six random numbers `u`.

    Returns linear radiance without the ambient light (from the sky or a bounce), the albedo that the ambient light is
    multiplied by, one random sample of the ambient light, the unit normal (0 in the sky), and the distance.
    """
    t, which, n = trace(scene, origin, direction, FAR)
    if which < 0:
        return sky(scene.lattice, direction, scene.sun), _BLACK, _BLACK, _BLACK, FAR
    p = along(origin, direction, t)
    c, frame = scene.centres[which], scene.frames[which]
    local = _rotate(frame, sub(p, (c[0], c[1], c[2])))
    material, size = scene.materials[which], scene.sizes[which]
    albedo, gloss, bump = surface(scene.lattice, material, local, _rotate(frame, n), size, which)
    shading = normalize(add(n, _rotate_back(frame, bump)))
    above = along(p, n, 1e-3)
    # one cosine-distributed ray samples the light of the sky and of neighbouring surfaces
    a, b = _frame(shading)
    radius, angle = math.sqrt(u[2]), 2.0 * math.pi * u[3]
    gather = add(scale(a, radius * math.cos(angle)), scale(b, radius * math.sin(angle)))
    gather = normalize(along(gather, shading, math.sqrt(1.0 - u[2])))
    ambient = _secondary_radiance(scene, above, gather, u[4], u[5]) if dot(gather, n) > 0.0 else _BLACK
    sunlight = _sunlight(scene, p, shading, u[0], u[1])
    shine = _BLACK
    mirror = reflect(direction, shading)
    if gloss > 0.0 and dot(mirror, n) > 0.0:
        fresnel = gloss * (0.04 + 0.96 * (1.0 + dot(direction, shading)) ** 5)
        shine = scale(_secondary_radiance(scene, above, mirror, u[4], u[5]), fresnel)
        albedo = scale(albedo, 1.0 - fresnel)
        highlight = max(dot(mirror, (scene.sun[0], scene.sun[1], scene.sun[2])), 0.0) ** 90
        shine = add(shine, scale(sunlight, 0.35 * gloss * highlight))
    return add(mul(albedo, sunlight), shine), albedo, ambient, n, t


@jit
def render(scene: Scene, pose: Any, focal: float, width: int, height: int, samples: int, seed: int) -> Any:
    """Return a camera's image [height, width, 13]: the mean over `samples` rays per pixel of what `_shade` returns.

    The distance is that of the nearest sample. `pose` [3, 4] is camera to world with OpenGL axes. Samples follow the
    R2 sequence (Roberts 2018), shifted per pixel. Each pair of numbers has its own stride through the sequence, so that
    the pairs are independent.
    """
    image = np.zeros((height, width, 13))
    image[..., 12] = FAR
    u = np.zeros(8)
    origin = (pose[0, 3], pose[1, 3], pose[2, 3])
    for y in range(height):
        for x in range(width):
            pixel = image[y, x]
            for s in range(samples):
                for k in range(4):
                    i = (s * (1, 5, 7, 11)[k]) % samples
                    a = hashed(x + width * y, 8 * seed + k, 77) + i * 0.7548776662466927
                    b = hashed(x + width * y, 8 * seed + k + 4, 77) + i * 0.5698402909980532
                    u[2 * k], u[2 * k + 1] = a - math.floor(a), b - math.floor(b)
                dx, dy = (x + u[6] - 0.5 * width) / focal, -(y + u[7] - 0.5 * height) / focal
                direction = normalize(_rotate(pose, (dx, dy, -1.0)))
                seen = _shade(scene, origin, direction, u)
                for k in range(3):
                    pixel[k] += seen[0][k] / samples
                    pixel[3 + k] += seen[1][k] / samples
                    pixel[6 + k] += seen[2][k] / samples
                    pixel[9 + k] += seen[3][k] / samples
                pixel[12] = min(pixel[12], seen[4])
    return image
