"""Any damaged file either loads as gaussians or raises NifiError, quickly and with little memory."""

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from PIL import Image
from random_splats import random_splats

from nifi_ns import formats
from nifi_ns.errors import CorruptFileError, NifiError

SUFFIXES = (".ply", ".spz", "_v4.spz", ".splat", ".compressed.ply", ".sog")


def is_refused(path: Path, data: bytes) -> bool:
    """Write `data` to `path`; return whether loading it raises a one-line NifiError. Other errors propagate."""
    path.write_bytes(data)
    try:
        splats = formats.load(path)
    except NifiError as error:
        assert "\n" not in str(error) and len(str(error)) < 400 + len(str(path))
        return True
    assert len(splats) > 0 and torch.isfinite(splats.means).all() and splats.quats.abs().amax(dim=1).min() > 0
    return False


def written(folder: Path, suffix: str) -> bytes:
    if suffix == "_v4.spz":  # read but not written by this package
        return (Path(__file__).parents[1] / "data" / "formats" / "random_v4.spz").read_bytes()
    formats.save(folder / f"whole{suffix}", random_splats(9, 1))
    return (folder / f"whole{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    data = written(tmp_path, suffix)
    step = 1 if len(data) < 4000 else 7
    for length in [*range(0, len(data) - 64, step), *range(len(data) - 64, len(data))]:
        refused = is_refused(tmp_path / f"cut{suffix}", data[:length])
        assert refused or (suffix == ".splat" and length % 32 == 0), length


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_random_bytes_in_files_load_or_are_refused(tmp_path: Path, suffix: str) -> None:
    data, rng = written(tmp_path, suffix), random.Random(0)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 4, 32))):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        is_refused(tmp_path / f"damaged{suffix}", bytes(damaged))
    assert is_refused(tmp_path / f"noise{suffix}", rng.randbytes(1001))


def test_random_bytes_in_a_decompressed_spz_load_or_are_refused(tmp_path: Path) -> None:
    data, rng = bytearray(gzip.decompress(written(tmp_path, ".spz"))), random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.randrange(16)] = rng.randrange(256)
        damaged[rng.randrange(len(data))] = rng.randrange(256)
        refused += is_refused(tmp_path / "damaged.spz", gzip.compress(damaged, 1))
    assert 150 < refused < 300  # most bytes of the header are the kind of file or its size


def test_random_bytes_in_the_files_of_a_sog_load_or_are_refused(tmp_path: Path) -> None:
    formats.save(tmp_path / "meta.json", random_splats(9, 1))
    rng = random.Random(0)
    for file in sorted(tmp_path.iterdir()):
        data = file.read_bytes()
        for _ in range(60):
            damaged = bytearray(data)
            damaged[rng.randrange(min(len(data), 600))] = rng.randrange(256)
            file.write_bytes(damaged)
            try:
                formats.load(tmp_path)
            except NifiError as error:
                assert "\n" not in str(error)
        file.write_bytes(data)


def test_headers_that_declare_too_many_gaussians_are_refused(tmp_path: Path) -> None:
    header = struct.pack("<4sIIBBBB", b"NGSP", 3, 2**32 - 1, 3, 12, 0, 0)
    assert is_refused(tmp_path / "a.spz", gzip.compress(header + bytes(1000)))
    ply = written(tmp_path, ".compressed.ply")
    plain = written(tmp_path, ".ply")
    for count in (b"vertex -1", b"vertex 2000000000", b"vertex " + b"9" * 30):
        for encoding in (b"ascii", b"binary_little_endian", b"binary_big_endian"):
            data = plain.replace(b"binary_little_endian", encoding).replace(b"vertex 9", count)
            assert is_refused(tmp_path / "a.ply", data)
    for line in (b"vertex 9", b"chunk 1", b"sh 9"):
        for count in (b"0", b"-1", b"99999999999", b"9" * 4000, b"1e9", b""):
            assert is_refused(tmp_path / "a.ply", ply.replace(line, line.split()[0] + b" " + count, 1)), (line, count)


def test_a_gzip_bomb_is_not_inflated(tmp_path: Path) -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    header = struct.pack("<4sIIBBBB", b"NGSP", 3, 1, 0, 12, 0, 0)
    bomb = deflate.compress(header) + deflate.compress(bytes(2**26)) + deflate.flush()
    assert is_refused(tmp_path / "a.spz", bomb)


def test_zstd_streams_of_wrong_size_are_refused(tmp_path: Path) -> None:
    data = bytearray(written(tmp_path, "_v4.spz"))
    for place, value in ((8, 2**31), (8, 0), (16, 2**32 - 1), (16, 0), (32, 2**31), (40, 1), (48, 0)):
        damaged = data.copy()
        damaged[place : place + 4] = struct.pack("<I", value)
        assert is_refused(tmp_path / "a.spz", bytes(damaged))
    head = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 1, 0, 12, 0, 5, 32)
    packed = [zstandard.compress(bytes(2**26)), *(zstandard.compress(bytes(size)) for size in (1, 3, 3, 4))]
    table = b"".join(struct.pack("<QQ", len(p), s) for p, s in zip(packed, (9, 1, 3, 3, 4), strict=True))
    assert is_refused(tmp_path / "a.spz", head + table + b"".join(packed))


def test_a_zip_bomb_is_not_inflated(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("meta.json", b" " * 2**26)
    assert is_refused(tmp_path / "a.sog", stream.getvalue())


def test_an_image_bomb_is_not_decoded(tmp_path: Path) -> None:
    formats.save(tmp_path / "meta.json", random_splats(9, 0))
    Image.new("RGBA", (4000, 4000)).save(tmp_path / "means_l.webp", lossless=True)
    with pytest.raises(CorruptFileError, match="pixels, expected"):
        formats.load(tmp_path)


def test_millions_of_gaussians_in_uniform_images_are_refused(tmp_path: Path) -> None:
    formats.save(tmp_path / "meta.json", random_splats(9, 0))
    for file in tmp_path.glob("*.webp"):
        Image.new("RGBA", (4000, 4000)).save(file, lossless=True)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert is_refused(tmp_path / "meta.json", json.dumps({**meta, "count": 16_000_000}).encode())


def _set(*keys: Any) -> Callable[[Any], None]:
    def change(meta: Any) -> None:
        *path, last, value = keys
        for key in path:
            meta = meta[key]
        meta[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("version", 3),
        _set("version", None),
        _set("count", 17),
        _set("count", 10**30),
        _set("count", -1),
        _set("count", True),
        _set("count", "9"),
        _set("means", None),
        _set("means", "mins", [0, 0]),
        _set("means", "maxs", [1e308, 0, 0]),
        _set("means", "mins", ["a", 0, 0]),
        _set("means", "files", []),
        _set("means", "files", 0, "../whole/means_l.webp"),
        _set("means", "files", 0, "/etc/hostname"),
        _set("means", "files", 0, "meta.json"),
        _set("means", "files", 0, ["means_l.webp"]),
        _set("means", "files", 0, ""),
        _set("scales", "codebook", [0] * 255),
        _set("scales", "codebook", [[0]] * 256),
        _set("scales", "codebook", [float("nan")] * 256),
        _set("scales", "codebook", [10**400] * 256),
        _set("scales", "codebook", {}),
        _set("shN", "bands", 2),
        _set("shN", "bands", [1]),
        _set("shN", "count", 0),
        _set("shN", "count", 2),
        _set("shN", "count", 10**9),
        _set("shN", "files", 1, "missing.webp"),
        _set("shN", 7),
    ],
)
def test_a_meta_json_with_wrong_values_is_refused(tmp_path: Path, change: Callable[[Any], None]) -> None:
    formats.save(tmp_path / "meta.json", random_splats(9, 1))
    meta = json.loads((tmp_path / "meta.json").read_text())
    change(meta)
    assert is_refused(tmp_path / "meta.json", json.dumps(meta).encode())


@pytest.mark.parametrize("text", ["[]", "7", "null", "{}", "[" * 100_000, '{"version": 2}', "\xff"])
def test_a_meta_json_that_describes_no_scene_is_refused(tmp_path: Path, text: str) -> None:
    assert is_refused(tmp_path / "meta.json", text.encode("latin-1"))
