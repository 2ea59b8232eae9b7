"""Scene files: splats to bytes and back.

Each level of a file (see `_scene`) adds gaussians to those of the levels before it. A file cut after any level is the
file of a coarser scene, with gaussians enlarged to cover as much as the whole scene.

The gaussians of a level are in Morton order. Its first stream is an octree of the high bits of positions (`_octree`).
The others are channels of integers (`_attributes`); the last ones hold the low bits of positions. All models keep
adapting from level to level.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from nifi_ns.compress.codec._attributes import ChannelCoder, ChannelModels, Plan
from nifi_ns.compress.codec._grid import MAX_SKIP, Bits, Grid
from nifi_ns.compress.codec._lod import GROWTH_UNIT, growth
from nifi_ns.compress.codec._octree import PositionCoder
from nifi_ns.compress.codec._quantize import Quantized, dequantize, quantize
from nifi_ns.compress.codec._scene import MAX_COUNT, MAX_LEVELS_OF_DETAIL, SceneInfo, open_scene, write_scene
from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.morton import morton_codes, morton_coordinates
from nifi_ns.splats import Splats


def encode(
    splats: Splats,
    grid: Grid | Bits,
    precision: Tensor | None = None,
    counts: Sequence[int] | None = None,
    *,
    antialiased: bool = False,
) -> bytes:
    """Return the scene file of `splats`.

    Args:
        splats: the gaussians; with several levels, the most important first.
        grid: the quantisers, or the bits to fit them for.
        precision: [N] int64 classes, see `precision_classes`; the same class for all by default.
        counts: how many gaussians each level adds, the coarsest level first; a single level by default.
        antialiased: whether the gaussians are drawn antialiased, which the file records.

    Raises:
        NifiError: if there are no gaussians, too many, or gaussians that cannot be drawn.
    """
    if len(splats) > MAX_COUNT:
        raise NifiError(f"{len(splats)} gaussians are more than a scene file can hold ({MAX_COUNT}): prune them first")
    counts = counts or [len(splats)]
    if sum(counts) != len(splats) or min(counts) < 1 or len(counts) > MAX_LEVELS_OF_DETAIL:
        raise ValueError(f"counts: levels of {list(counts)} gaussians do not add up to {len(splats)}")
    if problem := splats.problem():
        raise NifiError(f"cannot compress the scene: {problem}")
    with torch.no_grad():
        grid = Grid.fit(splats, grid) if isinstance(grid, Bits) else grid
        quantized = quantize(splats, grid, precision).to("cpu")
        ends = list(accumulate(counts))
        grown = [round(GROWTH_UNIT * growth(splats[torch.arange(end)], splats)) for end in ends[:-1]]
    depth = max(1, int(quantized.means.max()).bit_length())
    low = _low_bits(depth)
    positions, models = PositionCoder(depth - low), ChannelModels(_channels(quantized, low))
    levels = [
        _encode_level(quantized[torch.arange(begin, end)], grid, depth, positions, models)
        for begin, end in pairwise([0, *ends])
    ]
    return write_scene(counts, grown, splats.sh_degree, depth, grid, levels, antialiased)


def _low_bits(depth: int) -> int:
    # low bits of a coordinate that are not in the octree: as many as quantisation can drop
    return min(MAX_SKIP, depth - 1)


def _encode_level(
    quantized: Quantized, grid: Grid, depth: int, positions: PositionCoder, models: ChannelModels
) -> list[bytes]:
    codes = morton_codes(quantized.means.numpy(), depth)
    order = np.argsort(codes, kind="stable")
    low = _low_bits(depth)
    codes = codes[order] >> 3 * low
    channels = _channels(quantized[torch.from_numpy(order)], low)
    coder = ChannelCoder(morton_coordinates(codes, depth - low), models)
    streams = [positions.encode(codes)]
    for name, plan in _plans(quantized.sh_degree).items():
        streams.append(coder.encode(plan, channels, _skips(name, channels, grid)))
    return streams


def decode(data: bytes, levels: int | None = None) -> Splats:
    """Decode a scene file to gaussians in float32 on the CPU, with the same values on every machine.

    They are ordered by level, and within a level by Morton code.

    Args:
        data: the file, possibly cut after a level.
        levels: how many levels of detail to decode, from the coarsest; all by default.

    Raises:
        CorruptFileError: if `data` is not a scene file, or is of a later version, truncated or damaged.
    """
    scene, depth, parts = open_scene(data)
    low = _low_bits(depth)
    positions, models = PositionCoder(depth - low), ChannelModels()
    decoded, before = [], 0
    for level, streams in list(zip(scene.levels, parts, strict=True))[:levels]:
        count, before = level.count - before, level.count
        cells = morton_coordinates(positions.decode(streams["cells"], count), depth - low)
        coder = ChannelCoder(cells, models)
        channels: dict[str, np.ndarray] = {}
        for name, plan in _plans(scene.sh_degree).items():
            channels |= coder.decode(plan, streams[name], _skips(name, channels, scene.grid))
        _check(channels, scene.grid, low)
        decoded.append(dequantize(_quantized(cells << low, channels, scene.sh_degree), scene.grid))
    coarse = Splats.cat(decoded)
    return replace(coarse, scales=coarse.scales + scene.levels[len(decoded) - 1].growth)


def _check(channels: dict[str, np.ndarray], grid: Grid, low: int) -> None:
    bounds = {"precision": MAX_SKIP + 1, "ratio0": grid.ratio_levels, "opacity": grid.alpha_levels}
    bounds |= dict.fromkeys("xyz", 1 << low)
    shortest = channels["ratio0"] - channels["ratio1"]
    if shortest.min() < 0 or any(channels[n].min() < 0 or channels[n].max() >= most for n, most in bounds.items()):
        raise CorruptFileError("the scene file is damaged: a gaussian has values out of range")


def info(data: bytes) -> SceneInfo:
    """Return what a scene file holds. Checksums are verified, but no gaussians are decoded.

    Raises:
        CorruptFileError: as `decode`.
    """
    return open_scene(data)[0]


def _plans(sh_degree: int) -> dict[str, Plan]:
    # the channels of each stream, each with its contexts besides neighbours
    sh: Plan = [
        ("y0", ("scale", "opacity", "precision")),
        ("co0", ("y0", "precision")),
        ("cg0", ("co0", "y0", "precision")),
    ]
    for k in range(1, (sh_degree + 1) ** 2):
        sh += [(f"y{k}", (f"y{k - 1}",)), (f"co{k}", (f"y{k}", f"co{k - 1}")), (f"cg{k}", (f"co{k}", f"cg{k - 1}"))]
    return {
        "precision": [("precision", ("spacing",))],
        "scales": [("scale", ("spacing", "precision"))],
        "ratios": [("ratio0", ("scale", "precision")), ("ratio1", ("ratio0", "scale", "precision"))],
        "quats": [("quat0", ("ratio0", "ratio1")), ("quat1", ("quat0", "ratio1")), ("quat2", ("quat1", "quat0"))],
        "opacities": [("opacity", ("scale", "ratio1", "precision"))],
        "sh": sh,
        "means": [("x", ()), ("y", ()), ("z", ())],
    }


def _skips(stream: str, channels: dict[str, np.ndarray], grid: Grid) -> np.ndarray | None:
    # [N] how many low bits of a stream's values are zero and not coded; follows from earlier streams
    if stream == "precision":
        return None
    precision, longest, middle, shorter = (
        torch.from_numpy(channels[name]) if name in channels else None
        for name in ("precision", "scale", "ratio0", "ratio1")
    )
    shortest = None if middle is None or shorter is None else middle - shorter
    assert precision is not None
    return grid.skips(stream, precision, longest, shortest).numpy()


def _channels(quantized: Quantized, low: int) -> dict[str, np.ndarray]:
    # the axes are sorted, so their differences are small and never negative
    channels = {"precision": quantized.precision, "scale": quantized.scales}
    channels |= {"ratio0": quantized.ratios[:, 0], "ratio1": quantized.ratios[:, 0] - quantized.ratios[:, 1]}
    channels |= {f"quat{i}": quantized.quats[:, i] for i in range(3)}
    channels["opacity"] = quantized.opacities
    for k in range(quantized.sh.shape[1]):
        channels |= {f"{name}{k}": quantized.sh[:, k, i] for i, name in enumerate(("y", "co", "cg"))}
    channels |= {axis: quantized.means[:, i] & ((1 << low) - 1) for i, axis in enumerate("xyz")}
    return {name: channel.numpy() for name, channel in channels.items()}


def _quantized(cells: np.ndarray, channels: dict[str, np.ndarray], sh_degree: int) -> Quantized:
    # the inverse of _channels
    def stacked(*names: str) -> Tensor:
        return torch.from_numpy(np.stack([channels[name] for name in names], axis=1))

    means = torch.from_numpy(cells) + stacked("x", "y", "z")
    longest, middle, shorter = (torch.from_numpy(channels[name]) for name in ("scale", "ratio0", "ratio1"))
    quats, levels = stacked("quat0", "quat1", "quat2"), torch.from_numpy(channels["opacity"])
    sh = torch.stack([stacked(f"y{k}", f"co{k}", f"cg{k}") for k in range((sh_degree + 1) ** 2)], dim=1)
    precision = torch.from_numpy(channels["precision"])
    return Quantized(precision, means, longest, torch.stack([middle, middle - shorter], dim=1), quats, levels, sh)
