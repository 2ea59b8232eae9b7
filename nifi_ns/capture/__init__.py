"""A generated capture for the demo and the tests: photos of a garden table, in nerfstudio's format.

A built-in ray tracer makes it from one seed: textured objects on a wooden table, paving, a meadow, a house, trees,
hills and a cloudy sky; sunlight and skylight, soft shadows, one bounce, reflections; vignetting and sensor noise.
"""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import track

from nifi_ns.errors import NifiError
from nifi_ns.files import atomic_path, write_text

if TYPE_CHECKING:
    from nifi_ns.capture._trace import Scene

_AIM = (0.0, 0.0, 1.1)
_EXPOSURE = 0.42
_TEST_EVERY = 8


@dataclass(frozen=True)
class CaptureSettings:
    """Size and quality of a generated capture."""

    views: int = 48
    """Number of photos. Every 8th, starting with the first, is held out."""
    width: int = 320
    """Photo width in pixels."""
    height: int = 240
    """Photo height in pixels."""
    samples: int = 8
    """Light paths per pixel. Choose a number coprime to 5, 7 and 11; otherwise paths repeat."""
    points: int = 6000
    """Number of seed points in `sparse_pc.ply`."""
    seed: int = 0
    """Random seed for the garden, the camera path and the noise."""


def make_capture(folder: Path | str, settings: CaptureSettings | None = None, *, workers: int = 1) -> Path:
    """Write `transforms.json`, `images/*.jpg` and `sparse_pc.ply` into `folder`, and return it.

    `transforms.json` is written last, so a folder that contains it is complete. The photos do not depend on `workers`.

    Raises:
        NifiError: if there are too few views or pixels to train on.
    """
    from nifi_ns.capture import _scene

    settings = settings or CaptureSettings()
    if settings.views < 2 or min(settings.width, settings.height) < 16:
        size = f"{settings.width}x{settings.height}"
        raise NifiError(f"a capture needs at least 2 views of 16x16 pixels, got views={settings.views} of {size}")
    folder = Path(folder)
    random = np.random.default_rng(settings.seed)
    scene = _scene.build(random)
    poses = _poses(settings.views, random)
    names = [f"images/{i + 1:04d}.jpg" for i in range(settings.views)]

    def take(i: int) -> tuple[np.ndarray, np.ndarray]:
        photo, distances = _photo(scene, poses[i], i, settings)
        _write_jpeg(folder / names[i], photo)
        return photo, distances

    with ThreadPoolExecutor(workers) as pool:
        taken = pool.map(take, range(settings.views))
        shots = list(track(taken, "taking photos", total=settings.views, transient=True))
    training = [i for i in range(settings.views) if i % _TEST_EVERY]
    _write_points(folder / "sparse_pc.ply", [(poses[i], *shots[i]) for i in training], settings, random)
    held_out = [name for i, name in enumerate(names) if not i % _TEST_EVERY]
    rows = [[*map(list, pose), [0.0, 0.0, 0.0, 1.0]] for pose in poses.tolist()]
    focal = _focal(settings)
    document = {
        "camera_model": "OPENCV",
        "fl_x": focal,
        "fl_y": focal,
        "cx": settings.width / 2,
        "cy": settings.height / 2,
        "w": settings.width,
        "h": settings.height,
        "ply_file_path": "sparse_pc.ply",
        "train_filenames": [names[i] for i in training],
        "val_filenames": held_out,
        "test_filenames": held_out,
        "frames": [{"file_path": name, "transform_matrix": row} for name, row in zip(names, rows, strict=True)],
    }
    write_text(folder / "transforms.json", json.dumps(document, indent=1) + "\n")
    return folder


def _focal(settings: CaptureSettings) -> float:
    """Return the focal length in pixels, for a field of view of 58 degrees along the longer side."""
    return 0.5 * max(settings.width, settings.height) / math.tan(math.radians(29))


def _poses(count: int, random: np.random.Generator) -> np.ndarray:
    """Return [count, 3, 4] camera to world, OpenGL axes: two uneven circles around the table, low and then high."""
    poses = np.empty((count, 3, 4))
    low = (count + 1) // 2
    for i in range(count):
        turn = i / low if i < low else (i - low + 0.5) / max(count - low, 1)
        azimuth = 2 * math.pi * turn + 0.25 * math.sin(6 * math.pi * turn) / 3 + random.normal(0, 0.02)
        elevation = math.radians(16 if i < low else 37) + random.normal(0, 0.03)
        radius = 2.75 + 0.2 * math.cos(4 * math.pi * turn) + random.normal(0, 0.05)
        aim = np.array(_AIM) + random.normal(0, 0.04, 3)
        away = np.array([math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth)])
        back = np.array([*away, math.sin(elevation)])
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        poses[i] = np.stack([right, np.cross(back, right), back, aim + radius * back], axis=1)
    return poses


def _photo(scene: "Scene", pose: np.ndarray, index: int, settings: CaptureSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return the photo [H, W, 3] uint8, and the distances [H, W]."""
    from nifi_ns.capture import _trace

    w, h = settings.width, settings.height
    seen = _trace.render(scene, pose, _focal(settings), w, h, settings.samples, index)
    direct, albedo, ambient, normals, distances = np.split(seen, (3, 6, 9, 12), axis=2)
    light = direct + albedo * _smooth(ambient, normals, distances)
    y, x = (np.mgrid[:h, :w] + 0.5 - np.array([h, w])[:, None, None] / 2) / _focal(settings)
    exposed = _EXPOSURE * light * (1 / (1 + 0.35 * (x * x + y * y)))[..., None]
    # Narkowicz's fit of the ACES film curve, then the gamma of displays
    film = exposed * (2.51 * exposed + 0.03) / (exposed * (2.43 * exposed + 0.59) + 0.14)
    display = np.clip(film, 0, 1) ** (1 / 2.2)
    noise = np.random.default_rng([settings.seed, index]).normal(0, 0.006, display.shape)
    return (np.clip(display + noise, 0, 1) * 255 + 0.5).astype(np.uint8), distances[..., 0]


def _smooth(ambient: np.ndarray, normals: np.ndarray, distances: np.ndarray, radius: int = 3) -> np.ndarray:
    """Average the noisy `ambient` light [H, W, 3] over neighbouring pixels of the same surface."""
    total, weight = np.zeros_like(ambient), np.zeros_like(distances)
    logs = np.log(distances)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            shifted = [np.roll(a, (dy, dx), axis=(0, 1)) for a in (ambient, normals, logs)]
            facing = np.clip((normals * shifted[1]).sum(axis=2, keepdims=True), 0, 1) ** 16
            w = facing * np.exp(-(((logs - shifted[2]) / 0.03) ** 2)) + 1e-9
            total += w * shifted[0]
            weight += w
    return total / weight


def _write_jpeg(path: Path, photo: np.ndarray) -> None:
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(photo).save(temporary, quality=95, subsampling=0)


def _write_points(
    path: Path,
    shots: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    settings: CaptureSettings,
    random: np.random.Generator,
) -> None:
    """Write points like those of structure from motion: on visible surfaces, coloured by the photos, slightly noisy."""
    from plyfile import PlyData, PlyElement

    each = np.diff(np.linspace(0, settings.points, len(shots) + 1).astype(int))
    positions, colours = [], []
    for (pose, photo, distances), count in zip(shots, each, strict=True):
        rows, columns = random.integers(settings.height, size=count), random.integers(settings.width, size=count)
        x, y = columns + 0.5 - settings.width / 2, rows + 0.5 - settings.height / 2
        rays = np.stack([x, -y, np.full(count, -_focal(settings))], axis=1) @ pose[:, :3].T
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        # hills and clouds have no parallax, so their points lie at some large distance
        t = np.minimum(distances[rows, columns], random.uniform(40, 80, count))
        t *= 1 + random.normal(0, 0.002, count) * (1 + t / 10)
        positions.append(pose[:, 3] + t[:, None] * rays)
        colours.append(photo[rows, columns])
    table = np.empty(settings.points, [(n, "<f4") for n in "xyz"] + [(n, "u1") for n in ("red", "green", "blue")])
    for name, column in zip(
        table.dtype.names or (), [*np.concatenate(positions).T, *np.concatenate(colours).T], strict=True
    ):
        table[name] = column
    with atomic_path(path) as temporary:
        PlyData([PlyElement.describe(table, "vertex")], byte_order="<").write(str(temporary))
