"""Which photos show most of what a picture shows: by where they were taken, or by what they look like."""

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
    """The photos of a folder, nearest first, to one camera or picture after another."""

    def __init__(self, folder: Path) -> None:
        """Look for photos in `folder`, a capture with transforms.json or a plain folder of images.

        Raises:
            NifiError: if there are none, or transforms.json cannot be read (CorruptFileError).
        """
        poses = read_poses(folder / TRANSFORMS_FILE) if (folder / TRANSFORMS_FILE).is_file() else {}
        self.paths = [path for path in poses if path.is_file()] or images_in(folder)
        if not self.paths:
            raise NifiError(f"no photos in {folder}")
        self.cameras = np.array([poses[path] for path in self.paths if path in poses])
        """[N, 4, 4] to world, one for each photo; empty if there are none."""
        self._thumbnails: np.ndarray | None = None

    def by_pose(self, pose: np.ndarray, count: int) -> list[Path]:
        """The `count` photos taken nearest to a camera [4, 4] to world that look about the same way."""
        one, all_ = torch.from_numpy(pose[None]), torch.from_numpy(self.cameras)
        apart = camera_distances(one[:, :3, 3], one[:, :3, 2], all_[:, :3, 3], all_[:, :3, 2])[0]
        return [self.paths[i] for i in apart.argsort(stable=True)[:count].tolist()]

    def by_likeness(self, picture: np.ndarray, count: int) -> list[Path]:
        """The `count` photos that look most like `picture` [H, W, 3] uint8, seen from afar."""
        if self._thumbnails is None:
            self._thumbnails = np.stack([_thumbnail(read_picture(path)) for path in self.paths])
        likeness = self._thumbnails @ _thumbnail(picture)
        return [self.paths[i] for i in np.argsort(-likeness, kind="stable")[:count]]


def read_poses(path: Path) -> dict[Path, np.ndarray]:
    """Cameras [4, 4] to world, OpenGL axes, of nerfstudio's transforms.json, by image file.

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
    """[3 n^2] of unit length, without its mean colour: pictures of one place in other light stay alike."""
    small = Image.fromarray(picture).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float64)
    values = (values - values.mean(axis=(0, 1))).reshape(-1)
    return values / (np.linalg.norm(values) + 1e-9)
