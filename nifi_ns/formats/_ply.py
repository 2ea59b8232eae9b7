"""The standard `.ply` of 3DGS: a vertex per gaussian, with floats x y z, f_dc_*, f_rest_*, opacity, scale_*, rot_*.

A comment marks antialiased scenes: `SplatRenderMode: mip` as Brush and splat-transform write it, or `antialiased 1` as
Postshot does.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import atomic_path
from nifi_ns.formats._codes import array, checked
from nifi_ns.splats import Splats

_FIELDS = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
_FIELDS += ["rot_0", "rot_1", "rot_2", "rot_3"]
ANTIALIASED = "SplatRenderMode: mip"
"""Comment in the header of a `.ply` whose gaussians are drawn antialiased."""
_MODES = {
    "splatrendermode: mip": True,
    "antialiased 1": True,
    "splatrendermode: default": False,
    "antialiased 0": False,
}
_MAX_HEADER = 2**16
_LARGEST_LOGIT = 30.0
_SMALLEST_SCALE = -87.0  # the logarithm of the smallest normal float32


def is_antialiased(path: Path) -> bool:
    """Return whether the comments in the header say that the gaussians are drawn antialiased. The last one counts.

    Raises:
        NifiError: if they say that the gaussians are 2D (2DGS).
    """
    with path.open("rb") as file:
        header = file.read(_MAX_HEADER).partition(b"end_header")[0].decode("utf-8", "replace")
    found = False
    for line in header.splitlines():
        comment = " ".join(line.lower().split()).removeprefix("comment ")
        if comment == "splatrendermode: 2dgs":
            raise NifiError(f"{path} holds 2D gaussians (2DGS), which are not supported: train 3D gaussians instead")
        found = _MODES.get(comment, found)
    return found


def load(path: Path) -> Splats:
    """Read a `.ply`. Infinite logits (opacity 0 or 1) and log-scales (scale 0) become large finite ones.

    Raises:
        NifiError: if it holds 2D gaussians.
        CorruptFileError: if it is not a 3DGS `.ply`, is truncated, or holds gaussians that cannot be drawn.
    """
    from plyfile import PlyData, PlyParseError

    is_antialiased(path)
    try:
        vertex = PlyData.read(str(path))["vertex"].data
    except (OverflowError, MemoryError) as error:
        raise CorruptFileError(f"{path} declares more gaussians than fit into memory") from error
    except (PlyParseError, KeyError, ValueError) as error:
        raise CorruptFileError(f"{path} is not a readable .ply: {error}") from error
    names = vertex.dtype.names or ()
    rest = sum(name.startswith("f_rest_") for name in names)
    wanted = [*_FIELDS, *(f"f_rest_{i}" for i in range(rest))]
    if missing := [name for name in wanted if name not in names]:
        raise CorruptFileError(f"{path} is not a 3DGS .ply: it lacks {', '.join(missing)}")
    if rest not in (0, 9, 24, 45):
        raise CorruptFileError(f"{path}: {rest} f_rest_ properties, expected 0, 9, 24 or 45")

    def columns(*keys: str) -> NDArray[np.float32]:
        return np.stack([np.asarray(vertex[key], np.float32) for key in keys], axis=-1)

    # f_rest is channel-major: all red coefficients, then green, then blue
    dc = columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    higher = columns(*wanted[len(_FIELDS) :]).reshape(len(dc), 3, -1).transpose(0, 2, 1) if rest else dc[:, :0]
    opacities, scales = columns("opacity")[:, 0], columns("scale_0", "scale_1", "scale_2")
    return checked(
        path,
        columns("x", "y", "z"),
        np.where(np.isneginf(scales), _SMALLEST_SCALE, scales),
        columns("rot_0", "rot_1", "rot_2", "rot_3"),
        np.where(np.isinf(opacities), np.copysign(_LARGEST_LOGIT, opacities), opacities),
        np.concatenate([dc, higher], axis=1),
    )


def save(path: Path, splats: Splats, *, antialiased: bool = False) -> None:
    """Write a binary little-endian `.ply`."""
    from plyfile import PlyData, PlyElement

    rest = splats.sh[:, 1:].mT.flatten(1)
    names = [*_FIELDS[:6], *(f"f_rest_{i}" for i in range(rest.shape[1])), *_FIELDS[6:]]
    parts = (splats.means, splats.sh[:, 0], rest, splats.opacities[:, None], splats.scales, splats.quats)
    table = np.concatenate([array(part) for part in parts], axis=1).astype("<f4")
    vertex = table.view([(name, "<f4") for name in names]).reshape(len(splats))
    comments = [ANTIALIASED] if antialiased else []
    with atomic_path(path) as temporary:
        PlyData([PlyElement.describe(vertex, "vertex")], byte_order="<", comments=comments).write(str(temporary))
