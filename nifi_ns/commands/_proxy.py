"""`ns-nifi-pairs proxy`: pairs of photos and directly degraded photos, without splats."""

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import fingerprint
from nifi_ns.media import picture_size, read_picture
from nifi_ns.pairs import PairFolder, PairWriter, is_current
from nifi_ns.proxy import SMALLEST, ProxySettings, degrade, rate_of
from nifi_ns.views import Split, view_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERSION = 3
"""Increased whenever the same photos would give different pictures, so that cached pairs are written again."""

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_TEST_EVERY = 8

Photos = dict[Split, dict[str, Path]]
"""Files by split and view."""


def write_proxies(folders: "Sequence[Path]", output_dir: Path, settings: ProxySettings) -> "Iterator[PairFolder]":
    """Write `<output_dir>/<scene>/rate_proxy-<strength>` for each folder, unless they exist and are current.

    A scene is a folder of photos, searched recursively, or a capture with photos in `images/`. The test split holds the
    photos that the capture's `transforms.json` holds out, or else every eighth.

    Raises:
        NifiError: before anything is written, if a folder has no photos or an unusable one, or two have the same name.
    """
    scenes: dict[str, Photos] = {}
    for folder in folders:
        scene = scene_of(folder)
        if scene in scenes:
            raise NifiError(f"two folders are called {scene}: rename one, or use a separate --output-dir for each")
        scenes[scene] = find_photos(folder)
    for scene, photos in scenes.items():
        for strength in settings.strengths:
            yield _write(scene, photos, strength, output_dir, settings)


def scene_of(folder: Path) -> str:
    """Return the name of a folder of photos, or of the capture for its `images/`."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "images" else folder.name


def find_photos(folder: Path) -> Photos:
    """Return the photos in `folder`, with headers and sizes checked; see `write_proxies`.

    Raises:
        NifiError: if the folder does not exist, it has no photos, or one is too small.
        CorruptFileError: names the first file that is not a picture.
    """
    if not folder.is_dir():
        raise NifiError(f"no such folder: {folder}")
    folder = folder.resolve()
    root = folder / "images" if (folder / "images").is_dir() else folder
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise NifiError(f"no photos ({', '.join(_SUFFIXES)}) in {root}")
    for file in files:
        if min(picture_size(file)) < SMALLEST:
            width, height = picture_size(file)
            raise NifiError(f"{file} is {width}x{height}, expected at least {SMALLEST} pixels a side")
    held_out = _held_out(root.parent if root.name == "images" else root)
    names = view_names([root.name / file.relative_to(root) for file in files])
    photos: Photos = {"train": {}, "test": {}}
    for i, (name, file) in enumerate(zip(names, files, strict=True)):
        tests = file in held_out if held_out else i % _TEST_EVERY == 0 and len(files) > 1
        photos["test" if tests else "train"][name] = file
    if not photos["train"]:
        raise NifiError(f"all photos in {root} are held out by transforms.json: training needs at least one other")
    return photos


def _held_out(capture: Path) -> set[Path]:
    path = capture / "transforms.json"
    if not path.is_file():
        return set()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {capture / name for key in ("val_filenames", "test_filenames") for name in content.get(key, ())}
    except (ValueError, AttributeError, TypeError) as error:
        raise CorruptFileError(f"{path} is not a nerfstudio capture ({type(error).__name__}: {error})") from error


def _write(scene: str, photos: Photos, strength: float, output_dir: Path, settings: ProxySettings) -> PairFolder:
    from rich.progress import track

    rate = rate_of(strength)
    root = output_dir / scene / f"rate_{rate}"
    files = [file for named in photos.values() for file in named.values()]
    names = {split: list(named) for split, named in photos.items()}
    decided = (VERSION, strength, settings.degradations, settings.max_side, settings.seed)
    made_of = fingerprint(decided, names, files=files)
    if is_current(root, made_of):
        return PairFolder.open(root)
    writer = PairWriter(root, scene=scene, rate=rate, bytes=None, gaussians=None, fingerprint=made_of)
    views: list[tuple[Split, str, Path]] = [
        (split, name, file) for split, named in photos.items() for name, file in named.items()
    ]
    for split, name, file in track(views, f"{scene} {rate}: pairs", transient=True):
        photo = torch.from_numpy(read_picture(file, max_side=settings.max_side)).float() / 255
        rng = np.random.default_rng([settings.seed, zlib.crc32(f"{rate}/{name}".encode())])
        writer.add(split, name, photo, degrade(photo, strength, rng, settings.degradations))
    return writer.finish()
