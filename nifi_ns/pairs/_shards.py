"""Pairs in WebDataset shards: a few large tar files instead of many small pictures.

A sample is `<key>.clean.png`, `<key>.degraded.png`, optionally `<key>.referenced.png` (or .jpg, .webp), and
`<key>.json` with `scene`, `rate` and optionally `split` (train or test; default: train), `name` (default: the key),
`attended_photos` (a list of names of training views; names in none of the shards are dropped), `bytes` and `gaussians`.
A scene may span several shards, and a shard may hold many scenes. Any WebDataset reader can read the shards. Here they
are indexed by their headers and read at random positions, not streamed, because crop `i` of a training depends only on
the seed and `i`.
"""

import hashlib
import io
import json
import sys
import tarfile
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import atomic_path
from nifi_ns.pairs._folders import KINDS, SPLITS, PairFolder
from nifi_ns.views import Split

_SUFFIXES = ("png", "jpg", "jpeg", "webp")
_HEADER = 2**18  # bytes of a picture that usually contain its size


@dataclass(frozen=True)
class ShardedPairs(PairFolder):
    """Pairs of one scene at one rate in shards. `root` is the folder of the first shard. Created by `open_shards`."""

    shards: tuple[Path, ...] = ()
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, len(KINDS), 3), np.int64), compare=False)
    """[N, kinds, 3] shard index, offset and size in bytes, of the train views in order and then of the test views."""

    def path(self, split: str, kind: str, name: str) -> Path:
        """Return the name of the picture for error messages: its shard, then scene, rate and view."""
        shard, _, _ = self._place(split, "clean", name)
        return self.shards[shard] / self.label / split / f"{name}.{kind}"

    def content(self, split: str, kind: str, name: str, *, header: bool = False) -> BinaryIO:
        """Return the picture's bytes, or only the first ones for its header."""
        shard, offset, size = self._place(split, kind, name)
        if size == 0:
            raise NifiError(f"{self.path(split, kind, name)} is missing: the shard has no {kind} picture of this view")
        with open(self.shards[shard], "rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(min(size, _HEADER) if header else size))

    def _place(self, split: str, kind: str, name: str) -> tuple[int, int, int]:
        row = bisect_left(self.splits["train" if split == "train" else "test"], name)
        row += 0 if split == "train" else len(self.splits["train"])
        shard, offset, size = self.places[row, KINDS.index(kind)].tolist()
        return shard, offset, size


@dataclass
class _Scene:
    """Index of a scene at one rate while shards are read. Compact, because there may be many views."""

    about: dict[str, Any]
    views: list[tuple[Split, str]] = field(default_factory=list)
    attended_photos: list[tuple[str, ...]] = field(default_factory=list)
    places: "array[int]" = field(default_factory=lambda: array("q"))

    def finish(self, scene: str, rate: str, shards: Sequence[Path]) -> ShardedPairs:
        order = sorted(range(len(self.views)), key=lambda i: (SPLITS.index(self.views[i][0]), self.views[i][1]))
        views = [self.views[i] for i in order]
        places = np.array(self.places).reshape(-1, len(KINDS), 3)[order]
        numbers = np.unique(places[:, KINDS.index("clean"), 0])
        places[..., 0] = np.searchsorted(numbers, places[..., 0])
        own = tuple(shards[number] for number in numbers)
        if twice := next((a for a, b in pairwise(views) if a == b), None):
            raise NifiError(f"{own[0].parent}: {scene}/{rate} has two {twice[0]} views called {twice[1]}")
        size, count = self.about.get("bytes"), self.about.get("gaussians")
        if not isinstance(size, int | None) or not isinstance(count, int | None):
            raise NifiError(f"{own[0]}: {scene}/{rate} has bytes {size!r}, gaussians {count!r}: expected integers")
        splits = {split: tuple(name for s, name in views if s == split) for split in SPLITS}
        there = set(splits["train"])
        attended_photos: dict[str, dict[str, tuple[str, ...]]] = {}
        for i in order:
            if named := tuple(name for name in self.attended_photos[i] if name in there):
                split, name = self.views[i]
                attended_photos.setdefault(split, {})[name] = named
        made_of = repr(views) + (repr(attended_photos) if attended_photos else "")
        fingerprint = hashlib.sha256(made_of.encode() + places[..., 2].tobytes()).hexdigest()
        return ShardedPairs(own[0].parent, scene, rate, size, count, fingerprint, splits, attended_photos, own, places)


def open_shards(paths: Sequence[Path]) -> list[ShardedPairs]:
    """Return the pairs of every scene at every rate in tar files, from their headers and the samples' JSON.

    Raises:
        NifiError: if a sample lacks its JSON or photo, or two views of a scene have the same name.
        CorruptFileError: if a shard is not a tar file or is truncated.
    """
    found: dict[tuple[str, str], _Scene] = {}
    for number, path in enumerate(paths):
        for key, (about, places) in _samples(path).items():
            if not about or "clean" not in places:
                raise NifiError(f"{path}: sample {key} needs {key}.json and {key}.clean.png")
            split = about.get("split", "train")
            if split not in SPLITS or not {"scene", "rate"} <= about.keys():
                raise NifiError(f"{path}: {key}.json needs scene and rate, and split may be {' or '.join(SPLITS)}")
            if not isinstance(names := about.get("attended_photos", []), list):
                raise NifiError(f"{path}: {key}.json has attended_photos {names!r}: expected a list of names")
            scene = found.setdefault((str(about["scene"]), str(about["rate"])), _Scene(about))
            scene.views.append((split, str(about.get("name", key))))
            # interned, because names repeat often
            scene.attended_photos.append(tuple(sys.intern(str(name)) for name in names))
            for kind in KINDS:
                scene.places.extend((number, *places.get(kind, (0, 0))))
    return [scene.finish(*name, paths) for name, scene in found.items()]


def _samples(path: Path) -> dict[str, tuple[dict[str, Any], dict[str, tuple[int, int]]]]:
    """Return (JSON, offset and size by kind) of the samples of a shard by key. A key ends at the first dot."""
    samples: dict[str, tuple[dict[str, Any], dict[str, tuple[int, int]]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            end = path.stat().st_size
            for member in tar:
                if not 0 <= member.size <= end - member.offset_data:
                    raise ValueError(f"{member.name} has {member.size:,} bytes by its header, more than the file")
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                kind, _, suffix = extension.rpartition(".")
                about, places = samples.setdefault(f"{folder}/{stem}" if folder else stem, ({}, {}))
                if extension == "json":
                    file = tar.extractfile(member)
                    about |= json.loads(file.read() if file else "")
                elif kind in KINDS and suffix.lower() in _SUFFIXES:
                    places[kind] = member.offset_data, member.size
    except (tarfile.TarError, OSError, ValueError, TypeError, MemoryError, OverflowError) as error:
        # the last two, because tarfile does not limit the size of extended headers
        raise CorruptFileError(
            f"{path} is not a readable shard of pairs: {str(error) or 'a header has a wrong size'}"
        ) from error
    return {key: sample for key, sample in samples.items() if any(sample)}


def write_shards(folders: Iterable[PairFolder], output_dir: Path, shard_bytes: int) -> Iterator[Path]:
    """Write the unchanged pictures of pair folders to `<output_dir>/pairs-000000.tar` and so on. Yield each path.

    A shard ends with the sample that makes it at least `shard_bytes` large. Each is written atomically.
    """
    samples = _contents(folders)
    sample, number = next(samples, None), 0
    while sample is not None:
        path = output_dir / f"pairs-{number:06d}.tar"
        with atomic_path(path) as temporary, tarfile.open(temporary, "w") as tar:
            while sample is not None and tar.offset < shard_bytes:
                for name, data in sample:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                sample = next(samples, None)
        yield path
        number += 1


def _contents(folders: Iterable[PairFolder]) -> Iterator[list[tuple[str, bytes]]]:
    """Yield the names and contents of the members of each sample."""
    views = ((folder, split, name) for folder in folders for split in SPLITS for name in folder.splits[split])
    for number, (folder, split, name) in enumerate(views):
        if isinstance(folder, ShardedPairs):
            raise NifiError(f"{folder.label} is already in shards ({folder.shards[0]}): give folders with a pairs.json")
        key = f"{number:09d}"
        about: dict[str, Any] = {"scene": folder.scene, "rate": folder.rate, "split": split, "name": name}
        about |= {"bytes": folder.bytes, "gaussians": folder.gaussians}
        if names := folder.attended_photos.get(split, {}).get(name):
            about["attended_photos"] = names
        files = {kind: folder.path(split, kind, name) for kind in KINDS}
        pictures = [(f"{key}.{kind}.png", file.read_bytes()) for kind, file in files.items() if file.is_file()]
        yield [*pictures, (f"{key}.json", json.dumps(about).encode())]
