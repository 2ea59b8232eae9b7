"""Reading pictures and videos, and writing them with new pixels and unchanged metadata."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import atomic_path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
_JPEG: dict[str, Any] = {"quality": 95, "subsampling": 0}
_OPTIONS: dict[str, dict[str, Any]] = {".jpg": _JPEG, ".jpeg": _JPEG, ".webp": {"quality": 95}}
_OPTIONS |= {".png": {"compress_level": 3}}
# visually lossless
_X264, _VP9 = ("libx264", {"crf": "15"}), ("libvpx-vp9", {"crf": "20", "b": "0"})
_BT709 = 1  # ffmpeg's number for the colours of HD video


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def read_picture(path: Path, content: BinaryIO | None = None, *, max_side: int | None = None) -> np.ndarray:
    """Return a picture as [H, W, 3] uint8, upright and without transparency.

    Args:
        path: the file, or its name for errors if `content` is given.
        content: the file's bytes, such as a member of an archive.
        max_side: scale the picture down so that its longer side has at most this many pixels.

    Raises:
        NifiError: if the file does not exist.
        CorruptFileError: if it cannot be read, or exceeds Pillow's limit (about 179 megapixels).
    """
    with _opened(path, content) as image:
        picture = ImageOps.exif_transpose(image).convert("RGB")
    if max_side is not None:
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return np.array(picture)


def picture_size(path: Path, content: BinaryIO | None = None) -> tuple[int, int]:
    """Return the upright width and height of a picture from its header. Raises the errors of `read_picture`."""
    with _opened(path, content) as image:
        # the base class's method, because PNG's reads all pixels to find EXIF data behind them
        rotated = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) >= 5
        width, height = image.size
    return (height, width) if rotated else (width, height)


def write_picture(path: Path, pixels: np.ndarray | Tensor, like: Path | None = None) -> None:
    """Write a picture atomically, in the format of the suffix of `path`.

    Args:
        path: the file; its folder is created if missing.
        pixels: an array [H, W, 3] of uint8, or a tensor [H, W, 3] of floats in [0, 1], which is clamped and rounded.
        like: a picture to copy transparency, colour profile and EXIF data from.
    """
    image, suffix = Image.fromarray(_to_uint8(pixels)), path.suffix.lower()
    options = dict(_OPTIONS.get(suffix, {}))
    if like is not None:
        with _opened(like) as source:
            upright = ImageOps.exif_transpose(source)
            exif, profile = upright.getexif(), source.info.get("icc_profile")
            if upright.has_transparency_data and suffix not in (".jpg", ".jpeg", ".bmp"):
                image.putalpha(upright.convert("RGBA").getchannel("A"))
        options |= {"exif": exif} if len(exif) and suffix != ".bmp" else {}
        options |= {"icc_profile": profile} if profile else {}
    with atomic_path(path) as temporary:
        image.save(temporary, **options)


class Video:
    """A video file, to read its frames and to write a copy with other frames."""

    def __init__(self, path: Path) -> None:
        """Read the header of `path`.

        Raises:
            NifiError: if the file does not exist.
            CorruptFileError: if it is not a readable video.
        """
        self.path = path
        with _av_open(path) as container:
            stream = container.streams.video[0]
            self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            self.seconds = float(container.duration or 0) / 1e6
            self.audio = len(container.streams.audio)

    @property
    def approximate_frames(self) -> int:
        """Approximate number of frames, from the duration in the header."""
        return max(1, round(self.seconds * self.rate))

    def frames(self) -> Iterator[np.ndarray]:
        """Yield the frames [H, W, 3] uint8, upright, in display order.

        Raises:
            CorruptFileError: at the first frame that cannot be decoded.
        """
        with _av_open(self.path) as container:
            for frame in container.decode(video=0):
                yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)

    def write(self, path: Path, frames: Iterable[np.ndarray]) -> None:
        """Write a copy to `path` with the same number of other `frames` [H, W, 3] uint8. Times and sound are kept.

        Raises:
            NifiError: if the format of `path` does not support the streams of this video.
        """
        import av

        with _av_open(self.path) as times, atomic_path(path) as temporary:
            try:
                with av.open(str(temporary), "w") as target:
                    _copy(times, target, self.rate, iter(frames))
            except (av.FFmpegError, ValueError) as error:
                raise NifiError(f"cannot write {path}: {error}; try another suffix, such as .mkv") from error


def _copy(source: Any, target: Any, rate: Fraction, frames: Iterator[np.ndarray]) -> None:
    """Copy `source` to `target` with other frames and the same sound."""
    import av

    first = next(frames)
    height, width = first.shape[:2]
    frames = chain([first], frames)
    picture = source.streams.video[0]
    sound = [stream for stream in source.streams if stream.type == "audio"]
    codec, options = _VP9 if target.format.name == "webm" else _X264
    encoded = target.add_stream(codec, rate=rate, options=options)
    encoded.width, encoded.height = width, height
    # players support yuv420p best, which needs even sides
    encoded.pix_fmt = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"
    context = encoded.codec_context
    context.time_base, context.color_range = picture.time_base, 1
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    copies = {stream.index: target.add_stream_from_template(stream) for stream in sound}
    for packet in source.demux(picture, *sound):
        if packet.stream.type == "audio":
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
            continue
        for shown in packet.decode():
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(next(frames)), format="rgb24")
            frame = frame.reformat(format=encoded.pix_fmt, dst_colorspace="itu709")
            frame.pts, frame.time_base = shown.pts, shown.time_base
            target.mux(encoded.encode(frame))
    target.mux(encoded.encode())


def _to_uint8(pixels: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(pixels, np.ndarray):
        return pixels
    return pixels.detach().float().clamp(0, 1).mul(255).round().byte().cpu().numpy()


@contextmanager
def _opened(path: Path, content: BinaryIO | None = None) -> Iterator[Image.Image]:
    # Pillow raises SyntaxError for a broken PNG chunk
    errors = UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError
    if content is None and not path.is_file():
        raise NifiError(f"no such file: {path}")
    with _as_corrupt(path, errors), Image.open(content or path) as image:
        yield image


@contextmanager
def _av_open(path: Path) -> Iterator[Any]:
    import av

    if not path.is_file():
        raise NifiError(f"no such file: {path}")
    with _as_corrupt(path, (av.FFmpegError,)), av.open(str(path)) as container:
        if not container.streams.video:
            raise CorruptFileError(f"{path} has no video stream")
        yield container


@contextmanager
def _as_corrupt(path: Path, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise CorruptFileError(f"{path} cannot be read: {error}") from error
