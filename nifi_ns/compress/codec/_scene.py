"""What a scene file says of itself: its header, its levels of detail, and where its streams are.

A file (see `_container`) holds one header chunk `H` and, one after the other, level chunks `L`. Each level adds
gaussians to those of the levels before. The header:

    levels        varint, 1 to 16
    counts        as many varints, numbers of gaussians
    growths       for each level but the last: varint, in 1 / GROWTH_UNIT nat
    SH degree     varint, 0 to 3
    depth         varint, bits of a coordinate
    frame         centre (3 floats), radius (float), origin (3 floats); see `Grid` for all that follows
    steps         means, scales, quats, luma, chroma, SH (floats)
    levels        of ratios, of alpha (varints)
    offsets       of means, ratios, quats (signed varints)

A level begins with the lengths of its streams (varints), in the order of `STREAMS`; the streams follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nifi_ns.compress.codec._container import VERSION, Reader, Writer, read_file, write_file
from nifi_ns.compress.codec._grid import MAX_LEVELS, SIZED, Grid
from nifi_ns.compress.codec._lod import GROWTH_UNIT, MAX_GROWTH
from nifi_ns.compress.codec._quantize import MAX_DEPTH
from nifi_ns.errors import CorruptFileError

MAX_STEP = 1e6
"""Largest step of a quantiser, far beyond any useful one."""
MAX_COUNT = 1 << 24
"""Most gaussians of a scene file."""
MAX_LEVELS_OF_DETAIL = 16
"""Most levels of a scene file."""
FREE_COUNT = 1 << 12
"""Gaussians that a file of any size may hold."""
MAX_PER_BYTE = 4
"""Most gaussians for each byte of a file, beyond `FREE_COUNT`.

Equal gaussians cost the range coder nothing, so that a file of 331 bytes could ask its reader for gigabytes. Trained
scenes take 13 bits a gaussian at the very least; a file that takes less than 2 is padded by the encoder.
"""
STREAMS: tuple[str, ...] = ("cells", "precision", "scales", "ratios", "quats", "opacities", "sh", "means")
"""What the bytes of a scene file are spent on, in file order."""
# chunks that readers may skip
_ANTIALIASED, _PADDING = "a", "p"


@dataclass(frozen=True)
class LevelInfo:
    """A level of detail, together with those before it."""

    count: int
    """Number of gaussians."""
    size: int
    """Bytes of the file if it is cut behind this level."""
    growth: float
    """How much larger the gaussians are if the file is cut here, in nats of their scales."""


@dataclass(frozen=True)
class SceneInfo:
    """What is inside a scene file, read without decoding its gaussians."""

    version: int
    count: int
    """Number of gaussians in all levels that are there."""
    sh_degree: int
    size: int
    """Bytes of the file."""
    sizes: dict[str, int]
    """Bytes of each of `STREAMS`, and of everything else as "header"."""
    grid: Grid
    """The quantisers."""
    levels: tuple[LevelInfo, ...]
    """The levels that are there, from the coarsest."""
    missing: int
    """How many more levels the file had before it was cut."""
    antialiased: bool
    """Whether the gaussians are to be drawn antialiased."""


def write_scene(
    counts: Sequence[int],
    growths: Sequence[int],
    sh_degree: int,
    depth: int,
    grid: Grid,
    levels: Sequence[Sequence[bytes]],
    antialiased: bool,
) -> bytes:
    """Write a scene file.

    Args:
        counts: how many gaussians each level adds.
        growths: of each level but the last, in 1 / GROWTH_UNIT nat.
        sh_degree: 0 to 3.
        depth: bits of a coordinate, 1 to MAX_DEPTH.
        grid: the quantisers.
        levels: the streams of each level, in the order of `STREAMS`.
        antialiased: whether the gaussians are to be drawn antialiased.
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
    """Read everything but the gaussians: what the file holds, the bits of a coordinate, and the streams of each level.

    Raises:
        CorruptFileError: if it is no scene file, is of a later version, truncated or damaged, or declares more
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
        raise CorruptFileError("the scene file is truncated")
    reader = Reader(header)
    counts = [reader.unsigned(most=MAX_COUNT) for _ in range(reader.unsigned(most=MAX_LEVELS_OF_DETAIL))]
    growths = [reader.unsigned(most=MAX_GROWTH * GROWTH_UNIT) / GROWTH_UNIT for _ in counts[1:]] + [0.0]
    degree, depth = (reader.unsigned(most=most) for most in (3, MAX_DEPTH))
    grid = _read_grid(reader)
    if reader or len(levels) > len(counts) or min(counts) < 1 or sum(counts) > MAX_COUNT or depth == 0:
        raise CorruptFileError("the scene file is damaged: its header makes no sense")
    sizes, parts, found, total = dict.fromkeys(STREAMS, 0), [], [], 0
    for count, growth, (payload, end) in zip(counts, growths, levels, strict=False):
        level, total = Reader(payload), total + count
        if total > FREE_COUNT + MAX_PER_BYTE * end:
            raise CorruptFileError(f"the scene file is damaged: it declares {total} gaussians in {end} bytes")
        lengths = [level.unsigned(most=len(data)) for _ in STREAMS]
        parts.append({name: level.bytes(length) for name, length in zip(STREAMS, lengths, strict=True)})
        if level:
            raise CorruptFileError("the scene file is damaged: its streams are shorter than they say")
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
        raise CorruptFileError("the scene file is damaged: its quantisers make no sense")
    origin = corner[0], corner[1], corner[2]
    return Grid((x, y, z), radius, origin, means, scales, quats, luma, chroma, sh, ratios, alphas, offsets)
