"""Search for pair folders and shards at or below given paths."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from nifi_ns.errors import NifiError
from nifi_ns.pairs._folders import Input, PairFolder
from nifi_ns.pairs._shards import open_shards


def find_pair_folders(paths: Iterable[Path | str], inputs: Input = "degraded") -> list[PairFolder]:
    """Return all pair folders at or below `paths`, checked.

    A path may be a `rate_*` folder, a scene folder, a folder of scenes, a shard, or a folder of shards.

    Raises:
        NifiError: if a path holds none, or a folder fails `PairFolder.check`.
    """
    found: dict[Path, PairFolder] = {}
    shards: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise NifiError(f"no such folder or shard of pairs: {path}")
        lists = [file for depth in ("", "*/", "*/*/") for file in sorted(path.glob(f"{depth}pairs.json"))]
        tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not lists and not tars:
            raise NifiError(f"no pairs.json in {path} or two levels below, and no .tar: write pairs with ns-nifi-pairs")
        for file in lists:
            found.setdefault(file.parent.resolve(), PairFolder.open(file.parent))
        shards |= {tar.resolve(): tar for tar in tars}
    folders = [*found.values(), *open_shards(list(shards.values()))]
    for folder in folders:
        folder.check(inputs)
    return folders


def fingerprints(folders: Sequence[PairFolder]) -> dict[str, str]:
    """Return the fingerprints of `folders` by label.

    Raises:
        NifiError: if two folders have the same label.
    """
    roots: dict[str, Path] = {}
    for folder in folders:
        if folder.label in roots:
            raise NifiError(
                f"{roots[folder.label]} and {folder.root} are both called {folder.label}: "
                "change the scene or rate in one pairs.json"
            )
        roots[folder.label] = folder.root
    return {folder.label: folder.fingerprint for folder in folders}
