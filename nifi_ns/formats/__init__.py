"""Read and write splat files of other programs, by suffix. `Splats` have the frame, units and layout of a 3DGS `.ply`.

No library on PyPI replaces this: each supports a single format or Python version, or does not validate its input.
"""

from pathlib import Path

from nifi_ns.errors import NifiError
from nifi_ns.formats import _compressed_ply, _ply, _sog, _sog_levels, _sog_writer, _splat, _spz
from nifi_ns.splats import Splats

__all__ = ["SUFFIXES", "is_antialiased", "load", "save", "suffix"]

SUFFIXES = (".ply", ".compressed.ply", ".spz", ".splat", ".sog", "meta.json")
"""Endings of the file names that `load` and `save` support; `meta.json` is that of an unzipped `.sog`."""


def suffix(path: Path | str) -> str:
    """Return the longest of `SUFFIXES` that the name of `path` ends with.

    Raises:
        NifiError: if it ends with none of them.
    """
    name = Path(path).name.lower()
    for known in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(known) and (known.startswith(".") or name == known):
            return known
    raise NifiError(f"{path} has an unknown suffix, expected one of {', '.join(SUFFIXES)}")


def load(path: Path | str) -> Splats:
    """Read the gaussians of a file with any of `SUFFIXES`, or of a folder with an unzipped `.sog`.

    A streamed SOG, given as a folder or `lod-meta.json`, is read at its finest level.

    Raises:
        NifiError: if there is no such file, or its kind or version is not supported.
        CorruptFileError: if it is damaged, truncated or empty, or declares more than it can hold.
    """
    path, kind = _existing(Path(path))
    if kind == ".spz":
        return _spz.load(path)
    if kind == ".splat":
        return _splat.load(path)
    if kind == _sog_levels.NAME:
        return _sog_levels.load(path)
    if kind in (".sog", "meta.json"):
        return _sog.load(path)
    return _compressed_ply.load(path) if kind == ".compressed.ply" else _ply.load(path)


def is_antialiased(path: Path | str) -> bool:
    """Return whether the file says that its gaussians are drawn antialiased. A `.splat` cannot say so.

    Raises:
        NifiError, CorruptFileError: as `load`.
    """
    path, kind = _existing(Path(path))
    if kind == ".spz":
        return _spz.is_antialiased(path)
    if kind == _sog_levels.NAME:
        return _sog_levels.is_antialiased(path)
    if kind in (".sog", "meta.json"):
        return _sog.is_antialiased(path)
    return kind.endswith(".ply") and _ply.is_antialiased(path)


def _existing(path: Path) -> tuple[Path, str]:
    # the file to read, and its kind: one of SUFFIXES, or lod-meta.json
    if path.is_dir():
        path /= _sog_levels.NAME if (path / _sog_levels.NAME).is_file() else "meta.json"
    kind = path.name if path.name == _sog_levels.NAME else suffix(path)
    if not path.is_file():
        raise NifiError(f"no such file: {path}")
    if kind == ".ply" and _compressed_ply.is_compressed(path):
        kind = ".compressed.ply"  # many are just named .ply
    elif kind == ".compressed.ply" and not _compressed_ply.is_compressed(path):
        kind = ".ply"
    return path, kind


def save(path: Path | str, splats: Splats, *, antialiased: bool = False) -> None:
    """Write `splats` atomically, in the format given by the suffix of `path`.

    All formats but `.ply` are lossy. `.compressed.ply` and `.sog` reorder the gaussians; `.splat` keeps SH degree 0
    only.

    Args:
        path: the file to write.
        splats: the gaussians.
        antialiased: whether the gaussians are drawn antialiased, see `is_antialiased`.

    Raises:
        NifiError: if the suffix is unknown, there are no gaussians, some cannot be drawn, or the format cannot hold
            them.
    """
    path, kind = Path(path), suffix(path)
    if len(splats) == 0:
        raise NifiError(f"no gaussians to write to {path}")
    if problem := splats.problem():
        raise NifiError(f"cannot write {path}: {problem}")
    if kind == ".splat":
        if antialiased:
            raise NifiError(f"a .splat cannot record antialiasing: write {path.stem}.ply, .spz or .sog instead")
        _splat.save(path, splats)
    elif kind == ".spz":
        _spz.save(path, splats, antialiased=antialiased)
    elif kind == ".compressed.ply":
        _compressed_ply.save(path, splats, antialiased=antialiased)
    elif kind in (".sog", "meta.json"):
        _sog_writer.save(path, splats, antialiased=antialiased)
    else:
        _ply.save(path, splats, antialiased=antialiased)
