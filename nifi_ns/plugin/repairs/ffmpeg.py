"""`ns-render` needs an `ffmpeg` on PATH. The repair falls back to the binary of the pip package imageio-ffmpeg.

Nerfstudio exits when `shutil.which("ffmpeg")` finds none, even for `--output-format images`. Upstream: nerfstudio
issue 2427.
"""

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from nerfstudio.utils import install_checks

upstream = install_checks.check_ffmpeg_installed


def _check_with_fallback() -> None:
    if shutil.which("ffmpeg") is None:
        os.environ["PATH"] = os.environ.get("PATH", "") + os.pathsep + _folder().name
    upstream()


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder with a program called `ffmpeg`, deleted when the process ends."""
    import imageio_ffmpeg

    folder = tempfile.TemporaryDirectory(prefix="nifi-ns-ffmpeg-")
    # the binary's own name includes its version, but tools search for plain "ffmpeg"
    (Path(folder.name) / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    return folder


def install() -> None:
    """Make the check put the bundled ffmpeg on PATH, for this process and its children, if there is no other."""
    install_checks.check_ffmpeg_installed = _check_with_fallback
