"""Foreign files of gaussians, by suffix. Each is read into the frame, units and layout of a 3DGS `.ply`: see `Splats`.

Written here and not taken from a library: the wheels on PyPI know one format, or one Python, or trust their input.
"""

from pathlib import Path

from nifi_ns.errors import NifiError
from nifi_ns.formats import compressed_ply, sog, sog_levels, splat, spz
from nifi_ns.splats import Splats

SUFFIXES = (".ply", ".compressed.ply", ".spz", ".splat", ".sog", "meta.json")
"""How the names of files end that `load` and `save` know; `meta.json` is an unzipped `.sog` and its folder."""


def suffix(path: Path | str) -> str:
    """Which of `SUFFIXES` the name of `path` ends in, the longest one.

    Raises:
        NifiError: if it ends in none of them.
    """
    name = Path(path).name.lower()
    for known in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(known) and (known.startswith(".") or name == known):
            return known
    raise NifiError(f"{path} must end in one of {', '.join(SUFFIXES)}")


def load(path: Path | str) -> Splats:
    """Read the gaussians of a file of any of `SUFFIXES`, or of a folder with the `meta.json` of an unzipped `.sog`.

    Of a streamed SOG, its folder or `lod-meta.json`, the finest level is read.

    Raises:
        NifiError: if there is no such file, or it is of a kind or version that is not read.
        CorruptFileError: if it is damaged, truncated, absurd, or empty.
    """
    path = Path(path)
    if path.is_dir():
        streamed = path / sog_levels.NAME
        return sog_levels.load(streamed) if streamed.is_file() else sog.load(path)
    if path.name == sog_levels.NAME and path.is_file():
        return sog_levels.load(path)
    kind = suffix(path)
    if not path.is_file():
        raise NifiError(f"no such file: {path}")
    if kind == ".spz":
        return spz.load(path)
    if kind == ".splat":
        return splat.load(path)
    if kind in (".sog", "meta.json"):
        return sog.load(path)
    return compressed_ply.load(path) if compressed_ply.is_compressed(path) else Splats.load_ply(path)


def save(path: Path | str, splats: Splats) -> None:
    """Write `splats` as the format that the suffix of `path` names, atomically.

    All but `.ply` are lossy; `.compressed.ply` and `.sog` reorder the gaussians, `.splat` keeps SH degree 0 alone.

    Raises:
        NifiError: if the suffix is unknown, or there are no gaussians.
    """
    kind = suffix(path)
    if len(splats) == 0:
        raise NifiError(f"no gaussians to write to {path}")
    if kind == ".spz":
        spz.save(path, splats)
    elif kind == ".splat":
        splat.save(path, splats)
    elif kind == ".compressed.ply":
        compressed_ply.save(path, splats)
    elif kind in (".sog", "meta.json"):
        sog.save(path, splats)
    else:
        splats.save_ply(path)
