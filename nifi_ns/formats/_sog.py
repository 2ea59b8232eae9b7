"""Read PlayCanvas's SOG: lossless WebP images and a `meta.json`, in a folder or zipped as `.sog`.

Version 2: https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog/. Version 1 has bounds instead of
codebooks, see splat-transform's src/lib/readers/read-sog-v1.ts.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.formats._codes import (
    can_hold,
    checked,
    from_smallest_three,
    opacity_logits,
)
from nifi_ns.splats import Splats

WIDTH = 64
"""Number of entries of the SH palette in a row of its image."""
LARGEST_QUAT = 252
"""Alpha of a rotation whose largest component is w; 253 to 255 for x, y, z."""
_T = TypeVar("_T")
_MAX_META = 2**22
_MAX_FILE = 2**30
_MAX_PALETTE = 2**20  # pixels: 65,536 entries of 15
_FREE = 2**16  # pixels that an image may have whatever the number of gaussians


def load(path: Path) -> Splats:
    """Read a `.sog` of version 1 or 2, or its unzipped files beside a `meta.json`.

    Raises:
        NifiError: if a file is missing or has another version.
        CorruptFileError: if a file is damaged or truncated, or does not match `meta.json`.
    """
    return _read(path, _decode)


def is_antialiased(path: Path) -> bool:
    """Return whether the gaussians are drawn antialiased.

    Raises:
        NifiError, CorruptFileError: as `load`, if `meta.json` cannot be read.
    """
    return _read(path, lambda path, meta, _: _drawn_antialiased(path, meta))


def _read(path: Path, decode: Callable[[Path, Any, Callable[[str, int], bytes]], _T]) -> _T:
    """Call `decode` with the path, its `meta.json`, and a function that reads the files beside it."""
    read = _zip_reader(path) if path.suffix.lower() == ".sog" else _folder_reader(path)
    try:
        return decode(path, json.loads(read("meta.json", _MAX_META)), read)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else ""
        raise CorruptFileError(
            f"{path}: meta.json does not describe a SOG ({type(error).__name__}: {reason})"
        ) from error


def _drawn_antialiased(path: Path, meta: Any) -> bool:
    """Return whether `meta.json` says antialiased, with `model` as in splat-transform or the older `antialias`."""
    if not isinstance(meta, dict):
        raise TypeError("not an object")
    model = meta.get("model", "antialiased" if meta.get("antialias") is True else "default")
    if model not in ("default", "antialiased"):
        raise NifiError(f"{path} holds gaussians of the model {str(model)[:20]!r}, expected default or antialiased")
    return model == "antialiased"


def _zip_reader(path: Path) -> Callable[[str, int], bytes]:
    try:
        archive = path.read_bytes()
        bundle = zipfile.ZipFile(io.BytesIO(archive))
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError) as error:
        raise CorruptFileError(f"{path} is not a readable .sog: {error}") from error

    def read(name: str, limit: int) -> bytes:
        limit = min(limit, _MAX_META + 4 * len(archive))  # images hardly shrink in a zip
        try:
            member = bundle.getinfo(name)
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise CorruptFileError(f"{path}: {name[:80]!r} has an unsupported zip method, expected deflate")
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
    folder = path.parent

    def read(name: str, limit: int) -> bytes:
        file = folder / name
        if not file.is_file():
            raise NifiError(f"no such file: {file}")
        if file.stat().st_size > limit:
            raise CorruptFileError(f"{file} is larger than {limit} bytes")
        return file.read_bytes()

    return read


def _decode(path: Path, meta: Any, read: Callable[[str, int], bytes]) -> Splats:
    _drawn_antialiased(path, meta)  # refuses other models
    version = meta.get("version", 1)
    if version not in (1, 2):
        raise NifiError(f"{path} is a SOG of version {str(version)[:20]}, expected 1 or 2")
    count = meta["count"] if version == 2 else meta["means"]["shape"][0]
    if type(count) is not int or count < 1:
        raise CorruptFileError(f"{path} declares {str(count)[:20]} gaussians, expected 1 or more")

    def image(part: str, index: int, most_pixels: int) -> NDArray[np.uint8]:
        name = meta[part]["files"][index]
        if type(name) is not str or Path(name).name != name or "\\" in name:
            raise CorruptFileError(f"{path}: {str(name)[:80]!r} is not the name of a file beside meta.json")
        data = read(name, _MAX_FILE)
        # only the low bytes of positions are incompressible in real scenes; a uniform image takes almost no bytes
        if (part, index) == ("means", 0) and not can_hold(len(data), count):
            raise CorruptFileError(f"{path} declares {str(count)[:20]} gaussians in {len(data)} bytes of positions")
        return _image(path, name, data, most_pixels)

    def pixels(part: str, index: int = 0) -> NDArray[np.uint8]:
        flat = image(part, index, _FREE + 2 * count).reshape(-1, 4)
        if len(flat) < count:
            raise CorruptFileError(f"{path}: the image of {part} has {len(flat)} pixels for {count} gaussians")
        return flat[:count]

    low, high = (pixels("means", index)[:, :3] for index in (0, 1))
    means = _between(meta["means"], (low + 256.0 * high) / 65535, 3)
    rotations = pixels("quats")
    if rotations[:, 3].min() < LARGEST_QUAT:
        raise CorruptFileError(f"{path}: a rotation has an alpha below {LARGEST_QUAT}")
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
            raise CorruptFileError(f"{path}: a gaussian has SH entry {index.max()}, but the palette has {len(entries)}")
        sh = np.concatenate([sh, entries[index]], axis=1, dtype=np.float32)
    with np.errstate(over="ignore"):  # infinite positions are refused below
        means = np.sign(means) * np.expm1(np.abs(means))
    return checked(path, means, scales, from_smallest_three(rotations[:, 3] - LARGEST_QUAT, others), opacities, sh)


def _entries(path: Path, version: int, meta: dict[str, Any], image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Decode the palette of SH above degree 0 to [K, (degree + 1)^2 - 1, 3]. Each row of `image` has 64 entries."""
    coefficients = image.shape[1] // WIDTH
    expected = {1: 3, 2: 8, 3: 15}.get(meta["bands"]) if version == 2 else coefficients
    if image.shape[1] % WIDTH or coefficients not in (3, 8, 15) or coefficients != expected:
        raise CorruptFileError(f"{path}: the SH image is {image.shape[1]} pixels wide, which matches no SH degree")
    codes = image[..., :3].reshape(-1, coefficients, 3)
    values = _table(meta)[codes] if version == 2 else _between(meta, codes / 255.0, 1)
    count = meta["count"] if version == 2 else len(values)
    if type(count) is not int or not 0 < count <= len(values):
        raise CorruptFileError(f"{path} declares {str(count)[:20]} SH entries, its image holds {len(values)}")
    return values[:count].astype(np.float32)


def _image(path: Path, name: str, data: bytes, most_pixels: int) -> NDArray[np.uint8]:
    """Decode an image to [height, width, 4]."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=["WEBP", "PNG"]) as image:
            if image.width * image.height > most_pixels:
                raise CorruptFileError(f"{path}: {name!r} has {image.size} pixels, expected {most_pixels} at most")
            return np.asarray(image.convert("RGBA"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise CorruptFileError(f"{path}: {name!r} is not a readable WebP or PNG image") from error


def _table(meta: dict[str, Any]) -> NDArray[np.float64]:
    """Read a codebook of 256 numbers."""
    table = np.array(meta["codebook"], dtype=np.float64)
    if table.shape != (256,):
        raise ValueError(f"a codebook has {table.size} entries, expected 256")
    return table


def _between(meta: dict[str, Any], fractions: NDArray, channels: int) -> NDArray[np.float64]:
    """Interpolate from `mins` to `maxs` by `fractions` [..., channels]; for one channel these are plain numbers."""
    low, high = (np.array(meta[end], dtype=np.float64) for end in ("mins", "maxs"))
    expected = () if channels == 1 else (channels,)
    if low.shape != expected or high.shape != expected:
        raise ValueError(f"mins and maxs of shape {low.shape} and {high.shape}, expected {expected}")
    return low + (high - low) * fractions
