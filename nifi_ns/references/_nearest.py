"""Finds the photos that show most of what a picture shows, by camera pose or by appearance."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.media import images_in, read_picture
from nifi_ns.novel_views import camera_distances

TRANSFORMS_FILE = "transforms.json"
_THUMBNAIL = 24  # pixels a side


class NearestPhotos:
    """The photos of a folder, ordered by their distance to a camera or a picture."""

    def __init__(self, folder: Path) -> None:
        """Find the photos in `folder`, a capture with transforms.json or a plain folder of images.

        Raises:
            NifiError: if it has none, or transforms.json cannot be read (CorruptFileError).
        """
        poses = read_poses(folder / TRANSFORMS_FILE) if (folder / TRANSFORMS_FILE).is_file() else {}
        self.paths = [path for path in poses if path.is_file()] or images_in(folder)
        if not self.paths:
            raise NifiError(f"no photos in {folder}")
        self.cameras = np.array([poses[path] for path in self.paths if path in poses])
        """[N, 4, 4] camera to world, one for each photo; empty without poses."""
        self._thumbnails: np.ndarray | None = None

    def by_pose(self, pose: np.ndarray, count: int) -> list[Path]:
        """Return the `count` photos nearest to a camera to world matrix [4, 4], by position and direction."""
        one, all_ = torch.from_numpy(pose[None]), torch.from_numpy(self.cameras)
        apart = camera_distances(one[:, :3, 3], one[:, :3, 2], all_[:, :3, 3], all_[:, :3, 2])[0]
        return [self.paths[i] for i in apart.argsort(stable=True)[:count].tolist()]

    def by_appearance(self, picture: np.ndarray, count: int) -> list[Path]:
        """Return the `count` photos whose thumbnails are most similar to `picture`, [H, W, 3] uint8."""
        if self._thumbnails is None:
            self._thumbnails = np.stack([_thumbnail(read_picture(path)) for path in self.paths])
        similarity = self._thumbnails @ _thumbnail(picture)
        return [self.paths[i] for i in np.argsort(-similarity, kind="stable")[:count]]


def read_poses(path: Path) -> dict[Path, np.ndarray]:
    """Read camera to world matrices [4, 4], OpenGL axes, from nerfstudio's transforms.json, by image file.

    Raises:
        CorruptFileError: if it cannot be read.
    """
    try:
        frames = json.loads(path.read_text())["frames"]
        poses = {path.parent / f["file_path"]: np.array(f["transform_matrix"], dtype=np.float64) for f in frames}
        if wrong := [file for file, pose in poses.items() if pose.shape != (4, 4) or not np.isfinite(pose).all()]:
            raise ValueError(f"{wrong[0].name} has no camera")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CorruptFileError(f"{path} holds no cameras: {error}") from error
    return dict(sorted(poses.items()))


def _thumbnail(picture: np.ndarray) -> np.ndarray:
    """Return a small picture as a unit vector without its mean colour, so that light changes matter less."""
    small = Image.fromarray(picture).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float64)
    values = (values - values.mean(axis=(0, 1))).reshape(-1)
    return values / (np.linalg.norm(values) + 1e-9)
