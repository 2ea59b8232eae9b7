"""Read PlayCanvas's streamed SOG: a `lod-meta.json` and folders of SOGs in levels of detail, level 0 the finest.

As written by splat-transform (src/lib/writers/write-lod.ts), it holds a tree of boxes. Each leaf names, for each level,
the file and the part of the file that its gaussians are in.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.formats import _sog
from nifi_ns.splats import Splats

NAME = "lod-meta.json"
_MAX_META = 2**26


def load(path: Path) -> Splats:
    """Read the finest level of a `lod-meta.json`.

    Raises:
        NifiError: if a file is missing, or the files differ in SH degree or antialiasing.
        CorruptFileError: if a file is damaged, or `lod-meta.json` does not describe the level.
    """
    is_antialiased(path)  # refuses a mixture
    parts = [_sog.load(part) for part in _parts(path)]
    if len({part.sh_degree for part in parts}) > 1:
        raise NifiError(f"{path}: its files have different SH degrees, expected the same for all")
    return Splats.cat(parts)


def is_antialiased(path: Path) -> bool:
    """Return whether the gaussians of the finest level are drawn antialiased.

    Raises:
        NifiError, CorruptFileError: as `load`.
    """
    found = {_sog.is_antialiased(part) for part in _parts(path)}
    if len(found) > 1:
        raise NifiError(f"{path}: some of its files are antialiased and others are not, expected the same for all")
    return found.pop()


def _parts(path: Path) -> list[Path]:
    # the files of the finest level
    if path.stat().st_size > _MAX_META:
        raise CorruptFileError(f"{path} is larger than {_MAX_META} bytes")
    try:
        meta = json.loads(path.read_bytes())
        names = [meta["filenames"][index] for index in dict.fromkeys(_files(meta["tree"]))]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{path} does not describe a streamed SOG ({type(error).__name__})") from error
    for name in names:
        if type(name) is not str or PurePosixPath(name).is_absolute() or "\\" in name or ".." in name.split("/"):
            raise CorruptFileError(f"{path}: {str(name)[:80]!r} is not the name of a file below its folder")
    if not names:
        raise CorruptFileError(f"{path} has no gaussians in its finest level")
    return [path.parent / name for name in names]


def _files(node: dict[str, Any]) -> Iterator[int]:
    # the indices of the files of the finest level
    if "0" in node.get("lods", {}):
        yield node["lods"]["0"]["file"]
    for child in node.get("children", ()):
        yield from _files(child)
