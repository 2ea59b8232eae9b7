"""A short video, for the tests that need one."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

TIMES = [0, 1, 2, 3, 5, 9, 10, 11]  # tenths of a second


def write_clip(
    path: Path, size: tuple[int, int] = (48, 64), sound: bool = True, corner: bool = False
) -> list[np.ndarray]:
    """A video of unevenly timed grey frames, growing lighter, with a beep; a white `corner` tells which way is up."""
    frames = [np.full((*size, 3), 30 * i, np.uint8) for i in range(len(TIMES))]
    if corner:
        for frame in frames:
            frame[: size[0] // 2, : size[1] // 2] = 255
    with av.open(str(path), "w") as file:
        picture: Any = file.add_stream("libx264", rate=10)
        picture.height, picture.width = size
        picture.pix_fmt = "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"
        picture.codec_context.time_base = Fraction(1, 10)
        beep: Any = file.add_stream("aac", rate=16000) if sound else None
        for time, pixels in zip(TIMES, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            file.mux(picture.encode(frame))
        file.mux(picture.encode())
        if beep is not None:
            wave = (8000 * np.sin(np.arange(16000) / 20)).astype(np.int16)[None]
            samples: Any = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            samples.rate, samples.pts = 16000, 0
            file.mux([*beep.encode(samples), *beep.encode()])
    return frames
