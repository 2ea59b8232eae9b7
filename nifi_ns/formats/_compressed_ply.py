"""PlayCanvas's `.compressed.ply`: 16 bytes per gaussian, quantised between the bounds of a chunk of 256.

https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/ply/ ("Compressed PLY").
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nifi_ns.errors import CorruptFileError
from nifi_ns.files import write_bytes
from nifi_ns.formats._codes import (
    array,
    checked,
    from_smallest_three,
    morton_order,
    opacity_bytes,
    opacity_logits,
    quantize,
    smallest_three,
    within_reach,
)
from nifi_ns.formats._ply import ANTIALIASED
from nifi_ns.formats._ply import is_antialiased as ply_is_antialiased
from nifi_ns.splats import SH_C0, Splats

_CHUNK = 256
_BOUNDS = [f"{end}_{part}{axis}" for part in ("", "scale_") for end in ("min", "max") for axis in "xyz"]
_COLOR_BOUNDS = [f"{end}_{channel}" for end in ("min", "max") for channel in "rgb"]
_PACKED = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
_SIGNATURE = b"\nelement chunk "
_MAX_HEADER = 2**16
_TYPES = {"float": "<f4", "uint": "<u4", "uchar": "u1", "float32": "<f4", "uint32": "<u4", "uint8": "u1"}


def is_compressed(path: Path) -> bool:
    """Return whether the `.ply` at `path` is compressed; many are without the suffix."""
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER).replace(b"\r\n", b"\n")
    return head.startswith(b"ply\n") and _SIGNATURE in head.partition(b"\nend_header\n")[0]


def load(path: Path) -> Splats:
    """Read a `.compressed.ply`.

    Raises:
        NifiError: if it holds 2D gaussians.
        CorruptFileError: if it is not a `.compressed.ply`, is truncated, or holds values that are not finite.
    """
    ply_is_antialiased(path)  # refuses 2D gaussians
    tables = _tables(path, path.read_bytes())
    chunks, vertices, sh = tables.get("chunk"), tables.get("vertex"), tables.get("sh")
    if chunks is None or vertices is None:
        raise CorruptFileError(f"{path} is not a .compressed.ply: it lacks chunks or vertices")
    count = len(vertices)
    columns = [*(chunks.dtype.names or ()), *(vertices.dtype.names or ())]
    if missing := [name for name in (*_BOUNDS, *_PACKED) if name not in columns]:
        raise CorruptFileError(f"{path} is not a .compressed.ply: it lacks {', '.join(missing)}")
    if len(chunks) != -(-count // _CHUNK):
        raise CorruptFileError(f"{path} has {len(chunks)} chunks for {count} gaussians, expected one per {_CHUNK}")

    def unpacked(name: str, shifts: list[int], bits: list[int]) -> NDArray:
        fields = vertices[name].astype(np.int64)[:, None] >> np.array(shifts)
        return fields & (2 ** np.array(bits) - 1)

    def between(names: list[str], fractions: NDArray) -> NDArray:
        low, high = (np.stack([chunks[n] for n in part], axis=1).astype(np.float64) for part in (names[:3], names[3:]))
        chunk = np.arange(count) // _CHUNK
        return low[chunk] * (1 - fractions) + high[chunk] * fractions

    spatial = np.array([2047.0, 1023, 2047])
    rotations = unpacked("packed_rotation", [30, 20, 10, 0], [2, 10, 10, 10])
    rgba = unpacked("packed_color", [24, 16, 8, 0], [8] * 4)
    colors = rgba[:, :3] / 255.0
    if all(name in columns for name in _COLOR_BOUNDS):  # the oldest files have none
        colors = between(_COLOR_BOUNDS, colors)
    return checked(
        path,
        between(_BOUNDS[:6], unpacked("packed_position", [21, 11, 0], [11, 10, 11]) / spatial),
        between(_BOUNDS[6:], unpacked("packed_scale", [21, 11, 0], [11, 10, 11]) / spatial),
        from_smallest_three(rotations[:, 0], (rotations[:, 1:] / 1023.0 - 0.5) * np.sqrt(2)),
        opacity_logits(rgba[:, 3].astype(np.uint8)),
        np.concatenate([((colors - 0.5) / SH_C0)[:, None], _higher(path, sh, count)], axis=1),
    )


def save(path: Path, splats: Splats, *, antialiased: bool = False) -> None:
    """Write a `.compressed.ply` in Morton order. SH above degree 0 are clipped to +-4, scales to e^+-20."""
    splats = within_reach(splats)
    splats = splats[morton_order(splats.means)]
    means, scales = array(splats.means), np.clip(array(splats.scales), -20, 20)
    sh = array(splats.sh)
    colors = 0.5 + SH_C0 * sh[:, 0]
    spatial = np.array([2047, 1023, 2047])
    bounds, codes = [], []
    for values, levels in ((means, spatial), (scales, spatial), (colors, np.array([255] * 3))):
        bound, code = _in_chunks(values.astype(np.float64), levels)
        bounds.append(bound)
        codes.append(code)
    largest, others = smallest_three(array(splats.quats))
    rotations = np.concatenate([largest[:, None], quantize(others / np.sqrt(2) + 0.5, 1023)], axis=1)
    rgba = np.concatenate([codes[2], opacity_bytes(array(splats.opacities))[:, None]], axis=1)
    packed = [
        (codes[0] << np.array([21, 11, 0])).sum(axis=1),
        (rotations << np.array([30, 20, 10, 0])).sum(axis=1),
        (codes[1] << np.array([21, 11, 0])).sum(axis=1),
        (rgba << np.array([24, 16, 8, 0])).sum(axis=1),
    ]
    higher = np.clip((sh[:, 1:].transpose(0, 2, 1).reshape(len(sh), -1) / 8 + 0.5) * 256, 0, 255).astype(np.uint8)
    header = ["ply", "format binary_little_endian 1.0", *([f"comment {ANTIALIASED}"] if antialiased else [])]
    header += [f"element chunk {len(bounds[0])}"]
    header += [f"property float {name}" for name in (*_BOUNDS, *_COLOR_BOUNDS)]
    header += [f"element vertex {len(splats)}", *(f"property uint {name}" for name in _PACKED)]
    if higher.shape[1]:
        header += [f"element sh {len(splats)}", *(f"property uchar f_rest_{i}" for i in range(higher.shape[1]))]
    data = np.concatenate(bounds, axis=1).astype("<f4").tobytes() + np.stack(packed, axis=1).astype("<u4").tobytes()
    write_bytes(path, "\n".join([*header, "end_header\n"]).encode() + data + higher.tobytes())


def _tables(path: Path, data: bytes) -> dict[str, NDArray]:
    """Parse the elements of a binary `.ply` without lists, by name."""
    head, end, _ = data[:_MAX_HEADER].partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines() if line.strip()]
    if not end or lines[:2] != [["ply"], ["format", "binary_little_endian", "1.0"]]:
        raise CorruptFileError(f"{path} is not a binary little-endian .ply")
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    for line in lines[2:]:
        match line:
            case ["comment" | "obj_info", *_]:
                pass
            case ["element", name, count] if count.isdecimal() and len(count) < 12:
                elements.append((name, int(count), []))
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1][2].append((name, _TYPES[kind]))
            case _:
                raise CorruptFileError(f"{path}: cannot read the header's line {' '.join(line)[:80]!r}")
    tables, offset = {}, len(head) + len(end)
    for name, count, properties in elements:
        if not properties or len({key for key, _ in properties}) < len(properties):
            raise CorruptFileError(f"{path}: element {name[:80]!r} has no properties, or a repeated one")
        dtype = np.dtype(properties)
        if count * dtype.itemsize > len(data) - offset:
            raise CorruptFileError(f"{path} is truncated: it ends before {count} elements of {name[:80]!r}")
        tables[name] = np.frombuffer(data, dtype, count, offset)
        offset += count * dtype.itemsize
    return tables


def _higher(path: Path, sh: NDArray | None, count: int) -> NDArray:
    """Decode SH above degree 0 to [N, (degree + 1)^2 - 1, 3]. In the file, red comes first, then green, then blue."""
    if sh is None:
        return np.zeros((count, 0, 3))
    names = sh.dtype.names or ()
    if len(sh) != count or len(names) not in (9, 24, 45) or set(names) != {f"f_rest_{i}" for i in range(len(names))}:
        raise CorruptFileError(
            f"{path}: {len(names)} SH properties for {len(sh)} of {count} gaussians, expected 9, 24 or 45 for all"
        )
    if any(sh.dtype[name] != np.uint8 for name in names):
        raise CorruptFileError(f"{path}: SH properties are not of type uchar")
    codes = np.stack([sh[f"f_rest_{i}"] for i in range(len(names))], axis=1)
    values = np.where(codes == 0, 0, np.where(codes == 255, 256, codes + 0.5)) / 256
    return ((values - 0.5) * 8).reshape(count, 3, -1).transpose(0, 2, 1)


def _in_chunks(values: NDArray, levels: NDArray) -> tuple[NDArray, NDArray[np.int64]]:
    """Return the bounds of each chunk [chunks, 6], and `values` [N, 3] quantised between them."""
    starts = np.arange(0, len(values), _CHUNK)
    low = np.minimum.reduceat(values, starts).astype(np.float32).astype(np.float64)
    high = np.maximum.reduceat(values, starts).astype(np.float32).astype(np.float64)
    chunk = np.arange(len(values)) // _CHUNK
    fractions = (values - low[chunk]) / np.maximum(high - low, 1e-30)[chunk]
    return np.concatenate([low, high], axis=1), np.rint(np.clip(fractions, 0, 1) * levels).astype(np.int64)
