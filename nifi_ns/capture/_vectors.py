"""Three-component arithmetic and value noise for the compiled ray tracer."""

import math
from typing import Any

from nifi_ns.compiled import compiled

Vector = tuple[float, float, float]


jit = compiled(nogil=True, error_model="numpy")
"""Decorator: compile once per machine, and release the GIL so that threads render views in parallel."""


@jit
def add(a: Vector, b: Vector) -> Vector:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


@jit
def sub(a: Vector, b: Vector) -> Vector:
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


@jit
def mul(a: Vector, b: Vector) -> Vector:
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2])


@jit
def scale(a: Vector, s: float) -> Vector:
    return (a[0] * s, a[1] * s, a[2] * s)


@jit
def along(origin: Vector, direction: Vector, t: float) -> Vector:
    return (origin[0] + t * direction[0], origin[1] + t * direction[1], origin[2] + t * direction[2])


@jit
def mix(a: Vector, b: Vector, t: float) -> Vector:
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


@jit
def dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@jit
def normalize(a: Vector) -> Vector:
    return scale(a, 1.0 / math.sqrt(max(dot(a, a), 1e-30)))


@jit
def reflect(d: Vector, n: Vector) -> Vector:
    """Return direction `d` mirrored at a surface with unit normal `n`."""
    return along(d, n, -2.0 * dot(d, n))


@jit
def smoothstep(low: float, high: float, x: float) -> float:
    """Return 0 below `low`, 1 above `high`, and a smooth transition between."""
    t = min(max((x - low) / (high - low), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


@jit
def hashed(i: int, j: int, k: int) -> float:
    """Return a repeatable random number in [0, 1) for three integers."""
    h = (i * 374761393 + j * 668265263 + k * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1103515245) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 2246822519) & 0xFFFFFFFF
    return (h ^ (h >> 15)) / 4294967296.0


@jit
def noise(lattice: Any, x: float, y: float, z: float) -> float:
    """Return value noise in [0, 1] on a periodic `lattice` [S, S, S] of uniform numbers, S a power of two."""
    mask = lattice.shape[0] - 1
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    u, v, w = x - fx, y - fy, z - fz
    u, v, w = u * u * (3.0 - 2.0 * u), v * v * (3.0 - 2.0 * v), w * w * (3.0 - 2.0 * w)
    i, j, k = int(fx) & mask, int(fy) & mask, int(fz) & mask
    i1, j1, k1 = (i + 1) & mask, (j + 1) & mask, (k + 1) & mask
    a = lattice[i, j, k] + (lattice[i1, j, k] - lattice[i, j, k]) * u
    b = lattice[i, j1, k] + (lattice[i1, j1, k] - lattice[i, j1, k]) * u
    c = lattice[i, j, k1] + (lattice[i1, j, k1] - lattice[i, j, k1]) * u
    d = lattice[i, j1, k1] + (lattice[i1, j1, k1] - lattice[i, j1, k1]) * u
    a, c = a + (b - a) * v, c + (d - c) * v
    return a + (c - a) * w


@jit
def fbm(lattice: Any, x: float, y: float, z: float, octaves: int) -> float:
    """Return layered noise in about [0, 1], mean 0.5: each octave is twice as fine and half as strong."""
    total, weight, amplitude = 0.0, 0.0, 1.0
    for _ in range(octaves):
        total += amplitude * noise(lattice, x, y, z)
        weight += amplitude
        amplitude *= 0.5
        x, y, z = 2.03 * x + 17.3, 2.03 * y + 5.7, 2.03 * z + 31.1
    return total / weight
