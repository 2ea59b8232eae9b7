"""The header of a scene file, its levels of detail, and their streams.

A file (see `_container`) holds a header chunk `H`, followed by a chunk `L` for each level. Each level adds gaussians to
those of the levels before. The header:

    levels        varint, 1 to 16
    counts        a varint for each level: the number of gaussians it adds
    growths       a varint for each level but the last, in 1 / GROWTH_UNIT nat
    SH degree     varint, 0 to 3
    depth         varint, bits of a coordinate
    frame         centre (3 floats), radius (float), origin (3 floats); see `Grid` for this and the rest
    steps         means, scales, quats, luma, chroma, SH (floats)
    levels        of ratios, of alpha (varints)
    offsets       of means, ratios, quats (signed varints)

A level begins with the lengths of its streams (varints) in the order of `STREAMS`. The streams follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nifi_ns.compress.codec._container import VERSION, Reader, Writer, read_file, write_file
from nifi_ns.compress.codec._grid import MAX_LEVELS, SIZED, Grid
from nifi_ns.compress.codec._lod import GROWTH_UNIT, MAX_GROWTH
from nifi_ns.compress.codec._quantize import MAX_DEPTH
from nifi_ns.errors import CorruptFileError

MAX_STEP = 1e6
"""Maximum step of a quantiser, far above any useful one."""
MAX_COUNT = 1 << 24
"""Maximum number of gaussians in a scene file."""
MAX_LEVELS_OF_DETAIL = 16
"""Maximum number of levels in a scene file."""
FREE_COUNT = 1 << 12
"""Number of gaussians that a file of any size may hold."""
MAX_PER_BYTE = 4
"""Maximum number of gaussians per byte of a file, beyond `FREE_COUNT`.

Identical gaussians cost the range coder nothing, so a file of 331 bytes could make its reader allocate gigabytes.
Trained scenes take at least 13 bits per gaussian. The encoder pads files that take less than 2.
"""
STREAMS: tuple[str, ...] = ("cells", "precision", "scales", "ratios", "quats", "opacities", "sh", "means")
"""The streams of a level, in file order."""
# kinds of chunks that readers may skip
_ANTIALIASED, _PADDING = "a", "p"


@dataclass(frozen=True)
class LevelInfo:
    """A level of detail, including all levels before it."""

    count: int
    """Number of gaussians."""
    size: int
    """Bytes of the file if it is cut after this level."""
    growth: float
    """How much the gaussians are enlarged if the file is cut after this level, in nats of their scales."""


@dataclass(frozen=True)
class SceneInfo:
    """What a scene file holds, read without decoding its gaussians."""

    version: int
    count: int
    """Number of gaussians in all levels of the file."""
    sh_degree: int
    size: int
    """Bytes of the file."""
    sizes: dict[str, int]
    """Bytes of each of `STREAMS` over all levels; "header" is everything else."""
    grid: Grid
    """The quantisers."""
    levels: tuple[LevelInfo, ...]
    """The levels of the file, the coarsest first."""
    missing: int
    """Number of levels that were cut off."""
    antialiased: bool
    """Whether the gaussians are drawn antialiased."""


def write_scene(
    counts: Sequence[int],
    growths: Sequence[int],
    sh_degree: int,
    depth: int,
    grid: Grid,
    levels: Sequence[Sequence[bytes]],
    antialiased: bool,
) -> bytes:
    """Return the bytes of a scene file.

    Args:
        counts: how many gaussians each level adds.
        growths: growth of each level but the last, in 1 / GROWTH_UNIT nat.
        sh_degree: 0 to 3.
        depth: bits of a coordinate, 1 to MAX_DEPTH.
        grid: the quantisers.
        levels: the streams of each level, in the order of `STREAMS`.
        antialiased: whether the gaussians are drawn antialiased.
    """
    header = Writer()
    for value in (len(counts), *counts, *growths, sh_degree, depth):
        header.unsigned(value)
    _write_grid(header, grid)
    chunks, total = [("H", bytes(header.data)), *([(_ANTIALIASED, b"")] if antialiased else [])], 0
    for count, streams in zip(counts, levels, strict=True):
        total += count
        level = Writer()
        for stream in streams:
            level.unsigned(len(stream))
        chunk = ("L", bytes(level.data) + b"".join(streams))
        lacking = -(-(total - FREE_COUNT) // MAX_PER_BYTE) - len(write_file([*chunks, chunk]))
        if lacking > 0:
            chunks.append((_PADDING, bytes(lacking)))
        chunks.append(chunk)
    return write_file(chunks)


def open_scene(data: bytes) -> tuple[SceneInfo, int, list[dict[str, bytes]]]:
    """Read everything but the gaussians: the file's contents, the bits of a coordinate, and the streams of each level.

    Raises:
        CorruptFileError: if `data` is not a scene file, is of a later version, truncated or damaged, or declares more
            gaussians than its bytes can hold.
    """
    header, levels, antialiased = b"", [], False
    for kind, payload, end in read_file(data):
        if kind == "L" and header:
            levels.append((payload, end))
        elif kind == "H" and not header:
            header = payload
        elif kind == _ANTIALIASED:
            antialiased = True
        elif not kind.islower():
            raise CorruptFileError(f"the scene file is damaged: unexpected chunk {kind!r}")
    if not levels:
        raise CorruptFileError("the scene file is truncated: it has no levels")
    reader = Reader(header)
    counts = [reader.unsigned(most=MAX_COUNT) for _ in range(reader.unsigned(most=MAX_LEVELS_OF_DETAIL))]
    growths = [reader.unsigned(most=MAX_GROWTH * GROWTH_UNIT) / GROWTH_UNIT for _ in counts[1:]] + [0.0]
    degree, depth = (reader.unsigned(most=most) for most in (3, MAX_DEPTH))
    grid = _read_grid(reader)
    if reader or len(levels) > len(counts) or min(counts) < 1 or sum(counts) > MAX_COUNT or depth == 0:
        raise CorruptFileError("the scene file is damaged: its header has values out of range")
    sizes, parts, found, total = dict.fromkeys(STREAMS, 0), [], [], 0
    for count, growth, (payload, end) in zip(counts, growths, levels, strict=False):
        level, total = Reader(payload), total + count
        if total > FREE_COUNT + MAX_PER_BYTE * end:
            raise CorruptFileError(f"the scene file is damaged: it declares {total} gaussians in {end} bytes")
        lengths = [level.unsigned(most=len(data)) for _ in STREAMS]
        parts.append({name: level.bytes(length) for name, length in zip(STREAMS, lengths, strict=True)})
        if level:
            raise CorruptFileError("the scene file is damaged: its streams are shorter than their level")
        sizes = {name: size + length for (name, size), length in zip(sizes.items(), lengths, strict=True)}
        found.append(LevelInfo(total, end, growth))
    sizes["header"] = len(data) - sum(sizes.values())
    missing = len(counts) - len(levels)
    scene = SceneInfo(VERSION, total, degree, len(data), sizes, grid, tuple(found), missing, antialiased)
    return scene, depth, parts


def _write_grid(header: Writer, grid: Grid) -> None:
    header.float32(*grid.centre, grid.radius, *grid.origin)
    header.float32(grid.mean_step, grid.scale_step, grid.quat_step, grid.luma_step, grid.chroma_step, grid.sh_step)
    header.unsigned(grid.ratio_levels)
    header.unsigned(grid.alpha_levels)
    for offset in grid.offsets:
        header.signed(offset)


def _read_grid(header: Reader) -> Grid:
    x, y, z, radius, *corner = (header.float32() for _ in range(7))
    means, scales, quats, luma, chroma, sh = steps = [header.float32() for _ in range(6)]
    ratios, alphas = (header.unsigned(most=MAX_LEVELS) for _ in range(2))
    offsets = tuple(header.signed(most=1 << 40) for _ in SIZED)
    if min(ratios, alphas) < 2 or min(radius, *steps) <= 0 or max(steps) > MAX_STEP:
        raise CorruptFileError("the scene file is damaged: its quantisers are out of range")
    origin = corner[0], corner[1], corner[2]
    return Grid((x, y, z), radius, origin, means, scales, quats, luma, chroma, sh, ratios, alphas, offsets)
