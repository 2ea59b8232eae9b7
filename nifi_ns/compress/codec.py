"""Scene files: splats to bytes and back.

A file (see `container`) holds one header chunk `H` and one level chunk `L`. The header:

    levels        varint, 1 (later editions may add finer levels)
    count         varint, number of gaussians
    SH degree     varint, 0 to 3
    depth         varint, bits of a coordinate
    frame         centre (3 floats), radius (float), origin (3 floats); see `grid.Grid` for all that follows
    steps         means, scales, quats, luma, chroma, SH (floats)
    alpha levels  varint
    precision     of quats (signed varint)

The level holds five streams, in the order of `STREAMS`: first the lengths of all of them (varints), then the streams.
Gaussians are in Morton order. The first stream is an octree (`octree`), the others are channels of integers
(`attributes`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nifi_ns.compress.attributes import ChannelCoder, Plan
from nifi_ns.compress.container import VERSION, Reader, Writer, read_file, write_file
from nifi_ns.compress.grid import MAX_LEVELS, Bits, Grid
from nifi_ns.compress.octree import coordinates_of, decode_positions, encode_positions, morton_codes
from nifi_ns.compress.quantize import MAX_DEPTH, Quantized, dequantize, quantize
from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.splats import Splats

MAX_COUNT = 1 << 24
"""Most gaussians of a scene file."""
STREAMS: tuple[str, ...] = ("means", "scales", "quats", "opacities", "sh")
"""What the bytes of a scene file are spent on, in file order."""


@dataclass(frozen=True)
class SceneInfo:
    """What is inside a scene file, as told without decoding its gaussians."""

    version: int
    count: int
    """Number of gaussians."""
    sh_degree: int
    size: int
    """Bytes of the file."""
    sizes: dict[str, int]
    """Bytes of each of `STREAMS`, and of everything else as "header"."""
    grid: Grid
    """The quantisers."""


def encode(splats: Splats, bits: Bits, grid: Grid | None = None) -> bytes:
    """The scene file of `splats`, quantised to `bits` (or to an earlier `grid` of theirs, see `fake_quantize`).

    Raises:
        NifiError: if there are no gaussians, too many, or values that are not finite.
    """
    if len(splats) > MAX_COUNT:
        raise NifiError(f"{len(splats)} gaussians are more than a scene file holds ({MAX_COUNT}): prune them first")
    with torch.no_grad():
        grid = grid or Grid.fit(splats, bits)
        quantized = quantize(splats, grid).to("cpu")
    depth = max(1, int(quantized.means.max()).bit_length())
    codes = morton_codes(quantized.means.numpy(), depth)
    order = np.argsort(codes, kind="stable")
    codes = codes[order]
    quantized = quantized[torch.from_numpy(order)]
    channels, coder = _channels(quantized), ChannelCoder(coordinates_of(codes, depth))
    streams = [encode_positions(codes, depth)]
    for name, plan in _plans(splats.sh_degree).items():
        streams.append(coder.encode(plan, channels, _skips(name, channels, grid)))

    header = Writer()
    for value in (1, len(splats), splats.sh_degree, depth):
        header.unsigned(value)
    _write_grid(header, grid)
    level = Writer()
    for stream in streams:
        level.unsigned(len(stream))
    return write_file([("H", bytes(header.data)), ("L", bytes(level.data) + b"".join(streams))])


def decode(data: bytes) -> Splats:
    """The gaussians of a scene file, in Morton order, float32 on the CPU: the same on every machine.

    Raises:
        CorruptFileError: if it is no scene file, is of a later version, truncated or damaged.
    """
    scene, depth, streams = _open(data)
    codes = decode_positions(streams["means"], scene.count, depth)
    coordinates = coordinates_of(codes, depth)
    coder = ChannelCoder(coordinates)
    channels: dict[str, np.ndarray] = {}
    for name, plan in _plans(scene.sh_degree).items():
        channels |= coder.decode(plan, streams[name], _skips(name, channels, scene.grid))
        if name == "opacities" and channels["opacity"].max() >= scene.grid.alpha_levels:
            raise CorruptFileError("the scene file is damaged: an opacity makes no sense")
    return dequantize(_quantized(coordinates, channels, scene.sh_degree), scene.grid)


def info(data: bytes) -> SceneInfo:
    """What is inside a scene file. Checks its checksums, decodes no gaussian.

    Raises:
        CorruptFileError: as `decode`.
    """
    return _open(data)[0]


def _open(data: bytes) -> tuple[SceneInfo, int, dict[str, bytes]]:
    # what the file says of itself, the depth of its octree, and its streams
    chunks: dict[str, bytes] = {}
    for kind, payload in read_file(data):
        if kind in chunks or (kind not in ("H", "L") and not kind.islower()):
            raise CorruptFileError(f"the scene file is damaged: unexpected chunk {kind!r}")
        chunks[kind] = payload
    if "H" not in chunks or "L" not in chunks:
        raise CorruptFileError("the scene file is truncated")
    header, level = Reader(chunks["H"]), Reader(chunks["L"])
    header.unsigned(most=1)  # levels
    count, degree, depth = (header.unsigned(most=most) for most in (MAX_COUNT, 3, MAX_DEPTH))
    grid = _read_grid(header)
    if header or count == 0 or depth == 0:
        raise CorruptFileError("the scene file is damaged: its header makes no sense")
    lengths = [level.unsigned(most=len(data)) for _ in STREAMS]
    streams = {name: level.bytes(length) for name, length in zip(STREAMS, lengths, strict=True)}
    if level:
        raise CorruptFileError("the scene file is damaged: its streams are shorter than they say")
    sizes = dict(zip(STREAMS, lengths, strict=True))
    sizes["header"] = len(data) - sum(lengths)
    return SceneInfo(VERSION, count, degree, len(data), sizes, grid), depth, streams


def _plans(sh_degree: int) -> dict[str, Plan]:
    # the channels of each stream, and what each is conditioned on besides its neighbours
    sh: Plan = [("y0", ("scale0", "opacity")), ("co0", ("y0",)), ("cg0", ("co0", "y0"))]
    for k in range(1, (sh_degree + 1) ** 2):
        sh += [(f"y{k}", (f"y{k - 1}",)), (f"co{k}", (f"y{k}", f"co{k - 1}")), (f"cg{k}", (f"co{k}", f"cg{k - 1}"))]
    return {
        "scales": [("scale0", ("spacing",)), ("scale1", ("scale0",)), ("scale2", ("scale1", "scale0"))],
        "quats": [("quat0", ("scale1",)), ("quat1", ("quat0",)), ("quat2", ("quat1", "quat0"))],
        "opacities": [("opacity", ("scale0", "scale2"))],
        "sh": sh,
    }


def _skips(stream: str, channels: dict[str, np.ndarray], grid: Grid) -> np.ndarray | None:
    # [N] how many low bits of a stream's values are zero and not coded: it follows from the channels before
    return grid.quat_skips(_scales(channels)).numpy() if stream == "quats" else None


def _scales(channels: dict[str, np.ndarray]) -> Tensor:
    longest, second, third = (channels[f"scale{i}"] for i in range(3))
    return torch.from_numpy(np.stack([longest, longest - second, longest - second - third], axis=1))


def _channels(quantized: Quantized) -> dict[str, np.ndarray]:
    # scales are sorted, so that their differences are small and never negative
    longest, middle, shortest = quantized.scales.unbind(dim=1)
    channels = {"scale0": longest, "scale1": longest - middle, "scale2": middle - shortest}
    channels |= {f"quat{i}": quantized.quats[:, i] for i in range(3)}
    channels["opacity"] = quantized.opacities
    for k in range(quantized.sh.shape[1]):
        channels |= {f"{name}{k}": quantized.sh[:, k, i] for i, name in enumerate(("y", "co", "cg"))}
    return {name: channel.numpy() for name, channel in channels.items()}


def _quantized(coordinates: np.ndarray, channels: dict[str, np.ndarray], sh_degree: int) -> Quantized:
    # the inverse of _channels
    quats = np.stack([channels[f"quat{i}"] for i in range(3)], axis=1)
    count = (sh_degree + 1) ** 2
    sh = np.stack(
        [np.stack([channels[f"{name}{k}"] for name in ("y", "co", "cg")], axis=1) for k in range(count)], axis=1
    )
    means, mrp, levels, sh = map(torch.from_numpy, (coordinates, quats, channels["opacity"], sh))
    return Quantized(means, _scales(channels), mrp, levels, sh)


def _write_grid(header: Writer, grid: Grid) -> None:
    header.float32(*grid.centre, grid.radius, *grid.origin)
    header.float32(grid.mean_step, grid.scale_step, grid.quat_step, grid.luma_step, grid.chroma_step, grid.sh_step)
    header.unsigned(grid.alpha_levels)
    header.signed(grid.quat_precision)


def _read_grid(header: Reader) -> Grid:
    x, y, z, radius, *corner = (header.float32() for _ in range(7))
    means, scales, quats, luma, chroma, sh = steps = [header.float32() for _ in range(6)]
    levels, precision = header.unsigned(most=MAX_LEVELS), header.signed(most=1 << 40)
    if levels < 2 or min(radius, *steps) <= 0:
        raise CorruptFileError("the scene file is damaged: its quantisers make no sense")
    origin = corner[0], corner[1], corner[2]
    return Grid((x, y, z), radius, origin, means, scales, quats, luma, chroma, sh, levels, precision)
