"""Niantic's `.spz`, versions 2 to 4: https://github.com/nianticlabs/spz (README, "File Format").

Version 3 is written, because more viewers support it than version 4. Scales below e^-10 are clipped: a scene of a few
centimetres, in metres, loses its smallest scales.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import write_bytes
from nifi_ns.formats._codes import (
    array,
    can_hold,
    checked,
    from_smallest_three,
    opacity_bytes,
    opacity_logits,
    quantize,
    smallest_three,
    within_reach,
)
from nifi_ns.splats import Splats

_HEADER = struct.Struct("<4sIIBBBB")  # magic, version, count, SH degree, fractional bits, flags, streams
_MAGIC = b"NGSP"
_ANTIALIASED, _EXTENDED = 1, 2  # flags
_COLOR = 0.15
_MAX_FRACTIONAL_BITS = 16
_GZIP = 16 + zlib.MAX_WBITS
_MAX_WINDOW = 2**27  # the window of zstd's highest level

# between right-down-front (.ply) and right-up-back (.spz): flips y, z, and all SH basis functions odd in y + z
_FLIP_XYZ = np.array([1.0, -1, -1])
_FLIP_WXYZ = np.array([1.0, 1, -1, -1])
_FLIP_SH = np.array([-1.0, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1])[:, None]


def load(path: Path) -> Splats:
    """Read a `.spz`.

    Raises:
        NifiError: if its version or an extension is not supported.
        CorruptFileError: if it is damaged or truncated.
    """
    data = path.read_bytes()
    header, parts = (_from_zstd if data[:4] == _MAGIC else _from_gzip)(path, data)
    count, coefficients = header.count, (header.sh_degree + 1) ** 2 - 1
    positions, alphas, colors, scales, rotations, sh = (
        np.frombuffer(part, np.uint8).reshape(count, len(part) // count) for part in parts
    )
    # signed 24-bit integers, read as the upper three bytes of an int32
    fixed = np.zeros((count, 3, 4), np.uint8)
    fixed[..., 1:] = positions.reshape(count, 3, 3)
    means = (fixed.view("<i4")[..., 0] >> 8) / 2.0**header.fractional_bits
    dc = (colors / 255.0 - 0.5) / _COLOR
    higher = (sh.reshape(count, coefficients, 3) / 128.0 - 1) * _FLIP_SH[:coefficients]
    return checked(
        path,
        means * _FLIP_XYZ,
        scales / 16.0 - 10,
        (_unpack_three(rotations) if header.version == 2 else _unpack_rotations(rotations)) * _FLIP_WXYZ,
        opacity_logits(alphas[:, 0]),
        np.concatenate([dc[:, None], higher], axis=1),
    )


def is_antialiased(path: Path) -> bool:
    """Return whether the gaussians are drawn antialiased.

    Raises:
        NifiError, CorruptFileError: as `load`, if the header cannot be read.
    """
    data = path.read_bytes()
    try:
        head = data if data[:4] == _MAGIC else zlib.decompressobj(_GZIP).decompress(data, _HEADER.size)
    except zlib.error as error:
        raise CorruptFileError(f"{path} is not a readable .spz: {error}") from error
    return bool(_parse(path, head, len(data)).flags & _ANTIALIASED)


def save(path: Path, splats: Splats, *, antialiased: bool = False) -> None:
    """Write a `.spz` of version 3, with 5 bits for SH of degree 1 and 4 bits above, as Niantic's library does."""
    splats = within_reach(splats)
    means = array(splats.means).astype(np.float64) * _FLIP_XYZ
    reach = max(float(np.abs(means).max()), 1e-6)
    fractional_bits = min(_MAX_FRACTIONAL_BITS, int(np.floor(np.log2((2**23 - 1) / reach))))
    if fractional_bits < 0:
        raise NifiError(f"cannot write {path}: positions up to {reach:.3g} exceed the limit of a .spz, 8388607")
    fixed = np.rint(means * 2**fractional_bits).astype("<i4")
    sh = array(splats.sh).astype(np.float64)
    higher = np.rint(sh[:, 1:] * _FLIP_SH[: sh.shape[1] - 1] * 128) + 128
    step = np.where(np.arange(higher.shape[1]) < 3, 8, 16)[:, None]
    higher = np.clip(np.floor((higher + step // 2) / step) * step, 0, 255)
    parts = [
        np.ascontiguousarray(fixed)[..., None].view(np.uint8)[..., :3],
        opacity_bytes(array(splats.opacities)),
        quantize(sh[:, 0] * _COLOR + 0.5).astype(np.uint8),
        np.clip(np.rint((array(splats.scales) + 10) * 16), 0, 255).astype(np.uint8),
        _pack_rotations(array(splats.quats) * _FLIP_WXYZ),
        higher.astype(np.uint8),
    ]
    flags = _ANTIALIASED if antialiased else 0
    header = _HEADER.pack(_MAGIC, 3, len(splats), splats.sh_degree, fractional_bits, flags, 0)
    body = b"".join([header, *(part.tobytes() for part in parts)])
    data = _gzip(body, 9)
    # many equal gaussians compress so well that readers would refuse the file: store it without compression instead
    write_bytes(path, data if can_hold(len(data), len(splats)) else _gzip(body, 0))


def _gzip(data: bytes, level: int) -> bytes:
    deflate = zlib.compressobj(level, zlib.DEFLATED, _GZIP)
    return deflate.compress(data) + deflate.flush()


@dataclass
class _Header:
    version: int
    count: int
    sh_degree: int
    fractional_bits: int
    flags: int
    streams: int
    """Number of streams in version 4; reserved in earlier versions."""

    @property
    def sizes(self) -> list[int]:
        """Bytes of positions, opacities, colours, scales, rotations and SH."""
        each = (9, 1, 3, 3, 3 if self.version == 2 else 4, 3 * ((self.sh_degree + 1) ** 2 - 1))
        return [self.count * size for size in each]


def _parse(path: Path, data: bytes, file_size: int) -> _Header:
    """Parse the header at the start of `data`, and refuse it if it declares more than the file can hold."""
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise CorruptFileError(f"{path} is not a .spz: it has no header")
    _, version, count, degree, fractional_bits, flags, streams = _HEADER.unpack_from(data)
    if version not in (2, 3, 4):
        raise NifiError(f"{path} is a .spz of version {version}, expected 2 to 4")
    if degree > 3 or fractional_bits > 24:
        raise CorruptFileError(
            f"{path}: SH degree {degree} and {fractional_bits} fractional bits, expected at most 3 and 24"
        )
    if flags & _EXTENDED:  # extension data has no fixed position
        raise NifiError(f"{path} has extensions, which are not supported: export it without them")
    if flags & ~_ANTIALIASED:
        raise NifiError(f"{path} has unknown flags {flags:#x}, expected 0 or 1 (antialiased)")
    header = _Header(version, count, degree, fractional_bits, flags, streams)
    if count == 0 or not can_hold(file_size, count):
        raise CorruptFileError(f"{path} declares {count} gaussians in {file_size} bytes")
    return header


def _from_gzip(path: Path, data: bytes) -> tuple[_Header, list[bytes]]:
    """Unpack versions 2 and 3: the header and all arrays in one stream, no longer than the header says."""
    inflate = zlib.decompressobj(_GZIP)
    try:
        header = _parse(path, inflate.decompress(data, _HEADER.size), len(data))
        if header.version > 3:
            raise CorruptFileError(f"{path}: a .spz of version {header.version} in gzip, expected zstd")
        size = sum(header.sizes)
        body = inflate.decompress(inflate.unconsumed_tail, size + 1)
    except zlib.error as error:
        raise CorruptFileError(f"{path} is not a readable .spz: {error}") from error
    if len(body) != size or not inflate.eof:
        raise CorruptFileError(f"{path} does not hold the {header.count} gaussians that it declares")
    ends = np.cumsum(header.sizes).tolist()
    return header, [body[end - size : end] for end, size in zip(ends, header.sizes, strict=True)]


def _from_zstd(path: Path, data: bytes) -> tuple[_Header, list[bytes]]:
    """Unpack version 4: header, offset of a table with two uint64 per stream (packed and plain size), the streams."""
    import zstandard

    header = _parse(path, data, len(data))
    if header.version < 4 or len(data) < _HEADER.size + 4:
        raise CorruptFileError(f"{path}: a .spz of version {header.version} without gzip, or truncated")
    table = int.from_bytes(data[_HEADER.size : _HEADER.size + 4], "little")
    offset = table + 16 * header.streams
    if len(data) < offset:
        raise CorruptFileError(f"{path} is truncated: its table of streams ends at {offset}")
    sizes = [size for size in header.sizes if size]
    found = list(struct.iter_unpack("<QQ", data[table:offset]))
    if [plain for _, plain in found] != sizes:
        raise CorruptFileError(f"{path} does not hold the {header.count} gaussians that it declares")
    parts = []
    for packed, plain in found:
        if packed > len(data) - offset:
            raise CorruptFileError(f"{path} is truncated: it ends before a stream of {packed} bytes")
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        try:
            part = decompressor.stream_reader(data[offset : offset + packed]).read(plain + 1)
        except zstandard.ZstdError as error:
            raise CorruptFileError(f"{path} is not a readable .spz: {error}") from error
        if len(part) != plain:
            raise CorruptFileError(f"{path} does not hold the {header.count} gaussians that it declares")
        parts.append(part)
        offset += packed
    return header, [*parts, b""][:6]


def _unpack_three(codes: NDArray) -> NDArray:
    """Unpack rotations of version 2 (x, y and z in bytes) to wxyz."""
    xyz = codes / 127.5 - 1
    w = np.sqrt(np.maximum(0, 1 - np.square(xyz).sum(axis=1, keepdims=True)))
    return np.concatenate([w, xyz], axis=1)


def _unpack_rotations(codes: NDArray) -> NDArray:
    """Unpack rotations of versions 3 and 4 to wxyz: 2 bits for the largest of xyzw, sign and 9 bits for each other."""
    packed = np.ascontiguousarray(codes).view("<u4")
    fields = (packed >> np.array([20, 10, 0], np.uint32)) & 1023
    others = np.where(fields & 512, -1.0, 1.0) * (fields & 511) * (np.sqrt(0.5) / 511)
    return np.roll(from_smallest_three(packed[:, 0] >> 30, others), 1, axis=1)


def _pack_rotations(quats: NDArray) -> NDArray[np.uint8]:
    largest, others = smallest_three(np.roll(quats, -1, axis=1))
    fields = np.where(others < 0, 512, 0) | quantize(np.abs(others) * np.sqrt(2), 511)
    packed = (largest << 30) | (fields << np.array([20, 10, 0])).sum(axis=1)
    return packed.astype("<u4")[:, None].view(np.uint8)
