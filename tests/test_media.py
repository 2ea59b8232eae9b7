"""Images and videos keep everything but their pixels when these are replaced."""

import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clips import TIMES, write_clip
from PIL import Image

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.media import Video, picture_size, read_picture, write_picture


def packets(path: Path) -> list[bytes]:
    """Return the encoded packets of the sound."""
    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(file.streams.audio[0]) if packet.size]


@pytest.mark.parametrize("size", [(48, 64), (49, 63)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_video_keeps_times_and_sound(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    source, copy = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
    frames = write_clip(source, size)
    video = Video(source)
    assert (len(list(video.frames())), video.audio) == (len(TIMES), 1)
    video.write(copy, (255 - frame for frame in frames))
    for ours, wanted in zip(Video(copy).frames(), frames, strict=True):
        assert np.abs(ours.astype(int) - (255 - wanted)).max() <= 3
    with av.open(str(copy)) as file:
        times = [float(frame.time) for frame in file.decode(video=0)]
    assert [round(10 * (time - times[0])) for time in times] == TIMES  # the sound may begin slightly earlier
    assert packets(copy) == packets(source)


def test_videos_with_a_rotation_are_read_and_written_upright(tmp_path: Path) -> None:
    import subprocess

    import imageio_ffmpeg

    source, turned, copy = tmp_path / "in.mp4", tmp_path / "turned.mp4", tmp_path / "out.mp4"
    filmed = write_clip(source, (48, 64), sound=False, corner=True)
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", "90", "-i", str(source)]
    subprocess.run([*program, "-c", "copy", str(turned)], check=True)
    frames = list(Video(turned).frames())
    for upright in (frames, Video(turned).write(copy, frames) or Video(copy).frames()):
        for frame, lying in zip(upright, filmed, strict=True):
            assert np.abs(frame.astype(float) - np.rot90(lying)).mean() < 5


def test_a_format_that_cannot_hold_the_sound_is_refused_in_one_line(tmp_path: Path) -> None:
    frames = write_clip(tmp_path / "in.mp4")
    with pytest.raises(NifiError, match=r"cannot write .*out\.webm.*such as \.mkv"):
        Video(tmp_path / "in.mp4").write(tmp_path / "out.webm", frames)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_files_that_are_not_videos_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video at all")
    with pytest.raises(CorruptFileError, match=r"no\.mp4 cannot be read"):
        Video(tmp_path / "no.mp4")
    write_clip(tmp_path / "cut.mkv")
    data = (tmp_path / "cut.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[:200])
    with pytest.raises(CorruptFileError, match=r"cut\.mkv"):
        list(Video(tmp_path / "cut.mkv").frames())


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_a_picture_keeps_its_transparency(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 4), dtype=np.uint8)
    source, copy = tmp_path / "in.png", tmp_path / f"out{suffix}"
    Image.fromarray(pixels).save(source)
    write_picture(copy, 255 - read_picture(source), source)
    with Image.open(copy) as image:
        assert np.array_equal(np.asarray(image.convert("RGBA"))[..., 3], pixels[..., 3])


def test_a_photo_keeps_its_colour_profile_and_exif_and_is_turned_once(tmp_path: Path) -> None:
    source, copy = tmp_path / "in.jpg", tmp_path / "out.jpg"
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"  # lying on its side
    Image.new("RGB", (12, 8)).save(source, exif=exif, icc_profile=b"profile")
    pixels = read_picture(source)
    assert pixels.shape == (12, 8, 3)
    write_picture(copy, pixels, source)
    assert read_picture(copy).shape == (12, 8, 3)
    with Image.open(copy) as image:
        assert image.getexif()[0x010F] == "Maker" and image.info["icc_profile"] == b"profile"


def test_picture_size_matches_the_picture_that_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in (".jpg", ".png"):
        Image.new("RGB", (12, 8)).save(tmp_path / f"a{suffix}", exif=exif)
        assert picture_size(tmp_path / f"a{suffix}") == (8, 12)
        assert read_picture(tmp_path / f"a{suffix}").shape == (12, 8, 3)


@pytest.mark.parametrize("read", [picture_size, read_picture])
def test_a_header_that_declares_a_huge_picture_is_refused(tmp_path: Path, read) -> None:
    header = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)  # 10 GB of pixels in 60 bytes
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    data = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(data))
    with pytest.raises(CorruptFileError, match=r"huge\.png cannot be read: Image size \(3600000000 pixels\)"):
        read(tmp_path / "huge.png")


def test_a_tensor_is_written_clamped_and_rounded(tmp_path: Path) -> None:
    write_picture(tmp_path / "new" / "a.png", torch.tensor([[[-1.0, 0.5, 2.0]]]))
    assert read_picture(tmp_path / "new" / "a.png").tolist() == [[[0, 128, 255]]]
