"""Reading seed points from `.ply` imports open3d, which fails without the system's libusb, libGL and libgomp.

Upstream: nerfstudio issue 2333.
"""

from pathlib import Path

import numpy as np
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio
from torch import Tensor

from nifi_ns.errors import CorruptFileError

upstream = Nerfstudio._load_3D_points


def _read_with_plyfile(
    self: Nerfstudio, ply_file_path: Path, transform_matrix: Tensor, scale_factor: float
) -> dict[str, Tensor] | None:
    from plyfile import PlyData, PlyParseError

    try:
        vertex = PlyData.read(str(ply_file_path))["vertex"].data
        xyz = np.stack([vertex[axis] for axis in "xyz"], axis=-1).astype(np.float32)
    except (PlyParseError, KeyError, ValueError) as error:
        raise CorruptFileError(f"{ply_file_path} holds no readable points: {error}") from error
    if len(xyz) == 0:
        return None
    points = torch.from_numpy(xyz) @ transform_matrix[:, :3].T + transform_matrix[:, 3]
    names = vertex.dtype.names or ()
    rgb = np.zeros((0, 3), np.uint8)
    if {"red", "green", "blue"} <= set(names):
        rgb = np.stack([vertex[c] for c in ("red", "green", "blue")], axis=-1)
        rgb = (rgb * 255).round().astype(np.uint8) if rgb.dtype.kind == "f" else rgb.astype(np.uint8)
    return {"points3D_xyz": points * scale_factor, "points3D_rgb": torch.from_numpy(rgb)}


def install() -> None:
    """Read the seed points of nerfstudio datasets with plyfile."""
    Nerfstudio._load_3D_points = _read_with_plyfile
