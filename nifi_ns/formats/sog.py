"""PlayCanvas's SOG: lossless WebP images and a `meta.json`, in a folder or zipped as `.sog`; writes version 2.

https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog/ ; version 1, which has bounds in place of
codebooks, as splat-transform reads it (src/lib/readers/read-sog-v1.ts).
"""

import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import write_bytes
from nifi_ns.formats._codebook import codebook, palette
from nifi_ns.formats._codes import (
    array,
    checked,
    from_smallest_three,
    morton_order,
    opacity_bytes,
    opacity_logits,
    quantize,
    smallest_three,
)
from nifi_ns.splats import Splats

_WIDTH = 64  # entries of the palette in a row of its image
_LARGEST_QUAT = 252  # alpha of a rotation whose w is largest; 253 to 255: x, y, z
_MAX_META = 2**22
_MAX_FILE = 2**30
_MAX_PALETTE = 2**20  # pixels: 65,536 entries of 15
_FREE = 2**16  # pixels or gaussians that need no proof
_GAUSSIANS_PER_BYTE = 8  # of the low bytes of positions, which no real scene can compress; one colour takes no bytes


def load(path: Path | str) -> Splats:
    """Read a `.sog`, a folder with its unzipped files, or the `meta.json` in one. Versions 1 and 2.

    Raises:
        NifiError: if a file is missing, or of another version.
        CorruptFileError: if one is damaged, truncated, or does not hold what `meta.json` says.
    """
    path = Path(path)
    read = _zip_reader(path) if path.suffix.lower() == ".sog" and path.is_file() else _folder_reader(path)
    try:
        meta = json.loads(read("meta.json", _MAX_META))
        return _decode(path, meta, read)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else ""
        raise CorruptFileError(f"{path}: meta.json is not a SOG's ({type(error).__name__}: {reason})") from error


def save(path: Path | str, splats: Splats) -> None:
    """Write a `.sog`, or the unzipped files beside a `meta.json`, in Z-order.

    Harmonics above degree 0 become a palette of at most 65,536; up to so many gaussians, each keeps its own.
    """
    path = Path(path)
    files = _encode(splats[morton_order(splats.means)])
    if path.suffix.lower() != ".sog":
        for name, data in files.items():  # meta.json comes last: without it there is no scene yet
            write_bytes(path.parent / name, data)
        return
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as bundle:
        for name, data in files.items():
            bundle.writestr(
                zipfile.ZipInfo(name), data
            )  # ZipInfo: no time of day, so that equal scenes are equal files
    write_bytes(path, archive.getvalue())


# -- reading -------------------------------------------------------------------------------------------------------


def _zip_reader(path: Path) -> Callable[[str, int], bytes]:
    try:
        archive = path.read_bytes()
        bundle = zipfile.ZipFile(io.BytesIO(archive))
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError) as error:
        raise CorruptFileError(f"{path} is not a readable .sog: {error}") from error

    def read(name: str, limit: int) -> bytes:
        limit = min(limit, _MAX_META + 4 * len(archive))  # images are compressed already, zipped or not
        try:
            member = bundle.getinfo(name)
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise CorruptFileError(f"{path}: {name[:80]!r} is neither stored nor deflated")
            with bundle.open(member) as file:
                data = file.read(limit + 1)
        except KeyError as error:
            raise CorruptFileError(f"{path} holds no {name[:80]!r}") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, AttributeError) as error:
            raise CorruptFileError(f"{path}: {name[:80]!r} cannot be unzipped: {error}") from error
        if len(data) > limit:
            raise CorruptFileError(f"{path}: {name[:80]!r} unzips to more than {limit} bytes")
        return data

    return read


def _folder_reader(path: Path) -> Callable[[str, int], bytes]:
    folder = path if path.is_dir() else path.parent

    def read(name: str, limit: int) -> bytes:
        file = folder / name
        if not file.is_file():
            raise NifiError(f"no such file: {file}")
        if file.stat().st_size > limit:
            raise CorruptFileError(f"{file} has more than {limit} bytes")
        return file.read_bytes()

    return read


def _decode(path: Path, meta: Any, read: Callable[[str, int], bytes]) -> Splats:
    if not isinstance(meta, dict):
        raise TypeError("not an object")
    version = meta.get("version", 1)
    if version not in (1, 2):
        raise NifiError(f"{path} is a SOG of version {str(version)[:20]}; versions 1 and 2 are read")
    count = meta["count"] if version == 2 else meta["means"]["shape"][0]
    if type(count) is not int or count < 1:
        raise CorruptFileError(f"{path} says {str(count)[:20]} gaussians")

    def image(part: str, index: int, most_pixels: int) -> NDArray[np.uint8]:
        name = meta[part]["files"][index]
        if type(name) is not str or Path(name).name != name or "\\" in name:
            raise CorruptFileError(f"{path}: {str(name)[:80]!r} is not the name of a file beside meta.json")
        data = read(name, _MAX_FILE)
        if (part, index) == ("means", 0) and count > _FREE + _GAUSSIANS_PER_BYTE * len(data):
            raise CorruptFileError(f"{path} says {str(count)[:20]} gaussians, with {len(data)} bytes for positions")
        return _image(path, name, data, most_pixels)

    def pixels(part: str, index: int = 0) -> NDArray[np.uint8]:
        flat = image(part, index, _FREE + 2 * count).reshape(-1, 4)
        if len(flat) < count:
            raise CorruptFileError(f"{path}: the image of {part} has {len(flat)} pixels for {count} gaussians")
        return flat[:count]

    low, high = (pixels("means", index)[:, :3] for index in (0, 1))
    means = _between(meta["means"], (low + 256.0 * high) / 65535, 3)
    rotations = pixels("quats")
    if rotations[:, 3].min() < _LARGEST_QUAT:
        raise CorruptFileError(f"{path}: a rotation says none of its components is the largest")
    others = (rotations[:, :3] / 127.5 - 1) * np.sqrt(0.5)
    scales, colors = pixels("scales")[:, :3], pixels("sh0")
    if version == 2:
        scales, dc = _table(meta["scales"])[scales], _table(meta["sh0"])[colors[:, :3]]
        opacities = opacity_logits(colors[:, 3])
    else:
        scales = _between(meta["scales"], scales / 255.0, 3)
        colors = _between(meta["sh0"], colors / 255.0, 4)
        dc, opacities = colors[:, :3], colors[:, 3]
    sh = dc[:, None]
    if meta.get("shN") and (version == 1 or meta["shN"]["bands"]):
        labels = pixels("shN", 1)
        entries = _entries(path, version, meta["shN"], image("shN", 0, _MAX_PALETTE))
        index = labels[:, 0] + 256 * labels[:, 1].astype(np.int64)
        if index.max() >= len(entries):
            raise CorruptFileError(f"{path}: a gaussian takes harmonics {index.max()} of {len(entries)}")
        sh = np.concatenate([sh, entries[index]], axis=1, dtype=np.float32)
    with np.errstate(over="ignore"):  # what overflows is not finite, and refused
        means = np.sign(means) * np.expm1(np.abs(means))
    return checked(path, means, scales, from_smallest_three(rotations[:, 3] - _LARGEST_QUAT, others), opacities, sh)


def _entries(path: Path, version: int, meta: dict[str, Any], image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The palette of harmonics above degree 0, [K, (degree + 1)^2 - 1, 3]: 64 entries in each row of `image`."""
    coefficients = image.shape[1] // _WIDTH
    expected = {1: 3, 2: 8, 3: 15}.get(meta["bands"]) if version == 2 else coefficients
    if image.shape[1] % _WIDTH or coefficients not in (3, 8, 15) or coefficients != expected:
        raise CorruptFileError(
            f"{path}: the image of harmonics is {image.shape[1]} pixels wide, which fits no SH degree"
        )
    codes = image[..., :3].reshape(-1, coefficients, 3)
    values = _table(meta)[codes] if version == 2 else _between(meta, codes / 255.0, 1)
    count = meta["count"] if version == 2 else len(values)
    if type(count) is not int or not 0 < count <= len(values):
        raise CorruptFileError(f"{path} says {str(count)[:20]} harmonics, its image holds {len(values)}")
    return values[:count].astype(np.float32)


def _image(path: Path, name: str, data: bytes, most_pixels: int) -> NDArray[np.uint8]:
    """An image [height, width, 4]."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=["WEBP", "PNG"]) as image:
            if image.width * image.height > most_pixels:
                raise CorruptFileError(f"{path}: {name!r} has {image.size} pixels, expected {most_pixels} at most")
            return np.asarray(image.convert("RGBA"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise CorruptFileError(f"{path}: {name!r} is not a readable WebP or PNG image") from error


def _table(meta: dict[str, Any]) -> NDArray[np.float64]:
    """A codebook of 256 numbers."""
    table = np.array(meta["codebook"], dtype=np.float64)
    if table.shape != (256,):
        raise ValueError(f"a codebook has {table.size} entries, expected 256")
    return table


def _between(meta: dict[str, Any], fractions: NDArray, channels: int) -> NDArray[np.float64]:
    """`fractions` [..., channels] of the way from `mins` to `maxs`; with one channel these are plain numbers."""
    low, high = (np.array(meta[end], dtype=np.float64) for end in ("mins", "maxs"))
    expected = () if channels == 1 else (channels,)
    if low.shape != expected or high.shape != expected:
        raise ValueError(f"mins and maxs of shape {low.shape} and {high.shape}, expected {expected}")
    return low + (high - low) * fractions


# -- writing -------------------------------------------------------------------------------------------------------


def _encode(splats: Splats) -> dict[str, bytes]:
    """The files of an unzipped SOG, `meta.json` last."""
    count = len(splats)
    width = 4 * math.ceil(math.sqrt(count) / 4)
    files: dict[str, bytes] = {}

    def write(name: str, codes: NDArray, width: int = width) -> str:
        rows = 4 * math.ceil(len(codes) / width / 4)
        image = np.zeros((rows * width, 4), np.uint8)
        image[:, 3] = 255
        image[: len(codes), : codes.shape[1]] = codes
        files[name] = _webp(image.reshape(rows, width, 4))
        return name

    means = array(splats.means).astype(np.float64)
    means = np.sign(means) * np.log1p(np.abs(means))
    low, high = means.min(axis=0), means.max(axis=0)
    codes = quantize((means - low) / np.maximum(high - low, 1e-30), 65535)
    largest, others = smallest_three(array(splats.quats))
    quats = np.concatenate([quantize(others * np.sqrt(0.5) + 0.5), largest[:, None] + _LARGEST_QUAT], axis=1)
    scale_table, scales = codebook(splats.scales)
    color_table, colors = codebook(splats.sh[:, 0])
    colors = np.concatenate([colors, opacity_bytes(array(splats.opacities))[:, None]], axis=1)
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": "nifi-ns"},
        "count": count,
        "means": {
            "mins": low.tolist(),
            "maxs": high.tolist(),
            "files": [write("means_l.webp", codes & 255), write("means_u.webp", codes >> 8)],
        },
        "scales": {"codebook": _numbers(scale_table), "files": [write("scales.webp", scales)]},
        "quats": {"files": [write("quats.webp", quats)]},
        "sh0": {"codebook": _numbers(color_table), "files": [write("sh0.webp", colors)]},
    }
    if splats.sh_degree > 0:
        entries, labels = palette(splats.sh[:, 1:].flatten(1))
        table, centroids = codebook(entries)
        centroids = centroids.reshape(-1, 3)
        coefficients = splats.sh.shape[1] - 1
        names = [
            write("shN_centroids.webp", centroids, _WIDTH * coefficients),
            write("shN_labels.webp", np.stack([labels & 255, labels >> 8, 0 * labels], axis=1)),
        ]
        meta["shN"] = {"count": len(entries), "bands": splats.sh_degree, "codebook": _numbers(table), "files": names}
    return {**files, "meta.json": json.dumps(meta, separators=(",", ":")).encode()}


def _numbers(table: NDArray[np.float32]) -> list[float]:
    """A codebook for JSON, with the digits that a float32 has."""
    return [float(f"{value:.9g}") for value in table]


def _webp(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    # exact: the colours of transparent pixels are values here; they would be thrown away
    Image.fromarray(image).save(stream, "WEBP", lossless=True, exact=True, quality=80)
    return stream.getvalue()
