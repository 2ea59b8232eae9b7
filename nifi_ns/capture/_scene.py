"""The layout of the generated capture: a garden table with objects on it, a house, trees and hills."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nifi_ns.capture import _surfaces as material
from nifi_ns.capture._shapes import BOX, ELLIPSOID, FRUSTUM, GROUND, TORUS
from nifi_ns.capture._trace import Scene

TABLE_HEIGHT = 0.95


@dataclass(frozen=True)
class Thing:
    """One object. Angles are in degrees: first tilt (about x), then yaw (about z)."""

    shape: int
    material: int
    centre: tuple[float, float, float]
    size: tuple[float, float, float]
    yaw: float = 0.0
    tilt: float = 0.0

    @property
    def bound(self) -> float:
        """Radius of its bounding sphere."""
        a, b, c = self.size
        if self.shape == ELLIPSOID:
            return max(self.size)
        if self.shape == FRUSTUM:
            return math.hypot(max(a, b), c)
        return a + b if self.shape == TORUS else math.hypot(a, b, c)

    @property
    def frame(self) -> np.ndarray:
        """[3, 3] rotation, world to object."""
        yaw, tilt = math.radians(self.yaw), math.radians(self.tilt)
        about_z = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
        about_x = np.array([[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]])
        return (about_z @ about_x).T


def _table() -> list[Thing]:
    top = TABLE_HEIGHT
    things = [Thing(FRUSTUM, material.WOOD, (0, 0, top - 0.035), (1.25, 1.25, 0.035), yaw=20)]
    things += [Thing(FRUSTUM, material.WOOD, (0, 0, 0.46), (0.10, 0.16, 0.46))]
    things += [Thing(BOX, material.WOOD, (0, 0, 0.05), (0.62, 0.07, 0.05), yaw=20 + 90 * k) for k in range(2)]
    return things


def _things_on_the_table() -> list[Thing]:
    z = TABLE_HEIGHT
    return [
        Thing(BOX, material.FABRIC, (0.05, -0.1, z + 0.004), (0.62, 0.40, 0.004), yaw=-14),
        Thing(FRUSTUM, material.CERAMIC, (-0.05, 0.12, z + 0.20), (0.10, 0.185, 0.19)),
        Thing(FRUSTUM, material.CERAMIC, (-0.05, 0.12, z + 0.49), (0.185, 0.075, 0.10)),
        Thing(TORUS, material.CERAMIC, (-0.05, 0.12, z + 0.59), (0.085, 0.022, 0)),
        Thing(ELLIPSOID, material.MARBLE, (0.48, 0.26, z + 0.20), (0.20, 0.20, 0.20)),
        Thing(ELLIPSOID, material.CHECKER, (0.34, -0.42, z + 0.165), (0.155, 0.155, 0.155), yaw=30, tilt=25),
        Thing(BOX, material.BOOK, (-0.55, -0.30, z + 0.045), (0.27, 0.20, 0.045), yaw=35),
        Thing(BOX, material.BOOK, (-0.53, -0.31, z + 0.128), (0.22, 0.17, 0.038), yaw=12),
        Thing(TORUS, material.STONE, (-0.52, -0.31, z + 0.215), (0.11, 0.05, 0), yaw=0),
        Thing(ELLIPSOID, material.ORANGE, (-0.10, -0.55, z + 0.092), (0.095, 0.095, 0.088)),
        Thing(ELLIPSOID, material.ORANGE, (0.09, -0.60, z + 0.090), (0.092, 0.092, 0.086), yaw=70),
        Thing(ELLIPSOID, material.ORANGE, (0.00, -0.75, z + 0.086), (0.089, 0.089, 0.086), yaw=200),
        Thing(BOX, material.TERRACOTTA, (-0.50, 0.42, z + 0.15), (0.15, 0.15, 0.15), yaw=-25),
        Thing(FRUSTUM, material.MARBLE, (-0.50, 0.42, z + 0.46), (0.13, 0.0, 0.16)),
        Thing(FRUSTUM, material.TERRACOTTA, (0.16, 0.72, z + 0.10), (0.10, 0.15, 0.10)),
        *(
            Thing(ELLIPSOID, material.LEAVES, (0.16, 0.72, z + 0.30), (r, r, 0.9 * r), yaw=50 * k)
            for k, r in enumerate((0.20, 0.165, 0.12))
        ),
    ]


def _tree(random: np.random.Generator, x: float, y: float, height: float) -> list[Thing]:
    trunk = Thing(FRUSTUM, material.BARK, (x, y, 0.25 * height), (0.06 * height, 0.035 * height, 0.25 * height))
    things = [trunk]
    for k in range(3):
        cx, cy = x + 0.14 * height * random.normal(), y + 0.14 * height * random.normal()
        cz = height * (0.52 + 0.15 * k)
        r = height * random.uniform(0.19, 0.27)
        # two shells with holes: through the outer one, sky and the inner leaves are visible
        things += [
            Thing(ELLIPSOID, material.LEAVES, (cx, cy, cz), (f * r, f * r, 0.85 * f * r), yaw=360 * random.random())
            for f in (1.0, 0.75)
        ]
    return things


def _house() -> list[Thing]:
    x, y, yaw = -7.5, 8.5, -38.0
    return [
        Thing(BOX, material.BRICK, (x, y, 1.5), (3.0, 2.0, 1.5), yaw=yaw),
        Thing(BOX, material.ROOF, (x, y, 2.95), (3.3, 1.7, 1.7), yaw=yaw, tilt=45),
        Thing(BOX, material.BRICK, (x - 0.6, y + 1.0, 4.6), (0.3, 0.3, 0.9), yaw=yaw),
    ]


def _garden(random: np.random.Generator) -> list[list[Thing]]:
    """Return trees and bushes at distances of 6 to 26, and boulders and pots at the edge of the paving."""
    groups = []
    for k in range(15):
        angle, r = 2 * math.pi * (k + 0.5 * random.random()) / 15, random.uniform(6.5, 26)
        x, y = r * math.cos(angle), r * math.sin(angle)
        if math.hypot(x + 7.5, y - 8.5) > 5.0:
            groups.append(_tree(random, x, y, random.uniform(3.0, 5.5)))
    for k in range(9):
        angle, r = 2 * math.pi * (k + 0.7 * random.random()) / 9, random.uniform(4.6, 6.2)
        x, y, s = r * math.cos(angle), r * math.sin(angle), random.uniform(0.22, 0.5)
        if k % 3 == 0:
            pot = Thing(FRUSTUM, material.TERRACOTTA, (x, y, 0.3), (0.24, 0.34, 0.3))
            crown = [Thing(ELLIPSOID, material.LEAVES, (x, y, 0.85), (f, f, f), yaw=90 * f) for f in (0.42, 0.32)]
            groups.append([pot, *crown])
        elif k % 3 == 1:
            size = (1.3 * s, s, 0.8 * s)
            groups.append([Thing(ELLIPSOID, material.STONE, (x, y, 0.3 * s), size, yaw=360 * random.random())])
        else:
            groups.append(
                [Thing(ELLIPSOID, material.LEAVES, (x, y, s), (f * s * 1.5, f * s * 1.5, f * s)) for f in (1.0, 0.8)]
            )
    return groups


def build(random: np.random.Generator) -> Scene:
    """Return the scene, with random placement; the same for the same seed."""
    ground = [Thing(GROUND, material.GROUND, (0, 0, 0), (0, 0, 0))]
    groups: Sequence[list[Thing]] = [ground, _table(), _things_on_the_table(), _house(), *_garden(random)]
    things = [thing for group in groups for thing in group]
    ends = np.cumsum([len(group) for group in groups])
    spheres = []
    for group in groups:
        centres = np.array([thing.centre for thing in group])
        middle = (centres.min(0) + centres.max(0)) / 2
        radius = max(np.linalg.norm(c - middle) + thing.bound for c, thing in zip(centres, group, strict=True))
        spheres.append([*middle, 1e6 if group is ground else radius])
    sun = np.array([math.cos(0.9) * math.cos(0.75), math.sin(0.9) * math.cos(0.75), math.sin(0.75)])
    return Scene(
        shapes=np.array([thing.shape for thing in things]),
        materials=np.array([thing.material for thing in things]),
        centres=np.array([thing.centre for thing in things], float),
        sizes=np.array([thing.size for thing in things], float),
        frames=np.ascontiguousarray([thing.frame for thing in things]),
        bounds=np.array([thing.bound for thing in things]),
        groups=np.stack([ends - [len(group) for group in groups], ends], axis=1),
        spheres=np.array(spheres),
        lattice=random.random((64, 64, 64), dtype=np.float32),
        sun=sun,
    )
