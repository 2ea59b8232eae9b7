"""antimatter15's `.splat`: 32 bytes per gaussian, no header. https://github.com/antimatter15/splat (convert.py)."""

from pathlib import Path

import numpy as np

from nifi_ns.errors import CorruptFileError
from nifi_ns.files import write_bytes
from nifi_ns.formats._codes import array, checked, opacity_bytes, opacity_logits, quantize, unit_quats
from nifi_ns.splats import SH_C0, Splats

_GAUSSIAN = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])


def load(path: Path) -> Splats:
    """Read a `.splat`, which has SH degree 0.

    Raises:
        CorruptFileError: if it is truncated, or holds values that are not finite or negative scales.
    """
    data = path.read_bytes()
    if len(data) % _GAUSSIAN.itemsize:
        raise CorruptFileError(f"{path} is not a .splat: {len(data)} bytes are not a multiple of {_GAUSSIAN.itemsize}")
    table = np.frombuffer(data, _GAUSSIAN)
    if not (table["scale"] >= 0).all():
        raise CorruptFileError(f"{path} holds scales that are negative or not a number")
    # in some writers exp() of a very small scale is 0 in float32: use the smallest normal number instead
    scales = np.log(np.maximum(table["scale"], np.finfo(np.float32).tiny))
    dc = (table["rgba"][:, :3] / 255.0 - 0.5) / SH_C0
    quats = (table["quat"] - 128.0) / 128
    return checked(path, table["mean"], scales, quats, opacity_logits(table["rgba"][:, 3]), dc[:, None])


def save(path: Path, splats: Splats) -> None:
    """Write a `.splat`, without SH above degree 0 and with colours clipped to [0, 1]."""
    table = np.empty(len(splats), _GAUSSIAN)
    table["mean"] = array(splats.means)
    table["scale"] = np.exp(np.clip(array(splats.scales), -87, 87))
    table["rgba"][:, :3] = quantize(0.5 + SH_C0 * array(splats.sh)[:, 0])
    table["rgba"][:, 3] = opacity_bytes(array(splats.opacities))
    table["quat"] = np.clip(np.rint(unit_quats(array(splats.quats)) * 128 + 128), 0, 255)
    write_bytes(path, table.tobytes())
