"""Pair folders: renders of a scene file and the matching photos on disk, for any codec.

`<pairs>/<scene>/rate_<rate>/` holds `pairs.json` and, for the splits `train` and `test`, the folders `clean` (photos),
`degraded` (renders of the decoded splats) and, optionally, `referenced` (renders corrected with reference photos), with
PNG files of equal names and sizes. A foreign codec only has to fill such folders. See `_shards` for tar files.
`pairs.json` may also list, for each view, attended photos: training photos of the same folder from other cameras, the
most useful first.

Renders of *training* views have smaller and smoother residuals than renders of views that the splats were not fitted
to. The gap grows with the size of the scene file. A restorer is trained on the `train` split but used on new views. The
`test` split measures the effect of this gap and is never trained on.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from torch import Tensor

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import write_text
from nifi_ns.media import picture_size, read_picture, write_picture
from nifi_ns.views import Split

VERSION = 1
Input = Literal["degraded", "referenced"]
SPLITS: tuple[Split, ...] = get_args(Split)
KINDS = ("clean", *get_args(Input))


@dataclass(frozen=True)
class PairFolder:
    """Pairs of one scene at one rate. Created by `PairFolder.open` or `PairWriter.finish`."""

    root: Path
    scene: str
    rate: str
    """Size as the user wrote it: `25KB`."""
    bytes: int | None
    """Size of the scene file behind `degraded`, with every byte a decoder needs; None without one (`proxy`)."""
    gaussians: int | None
    """Number of gaussians; None if unknown (foreign codecs, proxies)."""
    fingerprint: str
    """Hash of all inputs of the renders. Equal hashes mean equal pairs."""
    splits: dict[str, tuple[str, ...]]
    """Names of the views, without suffix, by split."""
    attended_photos: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    """Attended photos by split and view: names of the training views whose photos show most of the view."""

    @classmethod
    def open(cls, root: Path | str) -> "PairFolder":
        """Read `root/pairs.json`. Images are not read; see `check`.

        Raises:
            NifiError: if `pairs.json` is missing or has another version.
            CorruptFileError: if it cannot be read or is incomplete.
        """
        root = Path(root)
        path = root / "pairs.json"
        if not path.is_file():
            raise NifiError(f"no pairs in {root}: expected {path}; write it with ns-nifi-pairs")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["version"]
            splits = {split: tuple(map(str, content["splits"].get(split, ()))) for split in SPLITS}
            size, count = (None if content[key] is None else int(content[key]) for key in ("bytes", "gaussians"))
            named = content.get("attended_photos", {}).items()
            attended_photos = {split: {n: tuple(map(str, r)) for n, r in views.items()} for split, views in named}
            made_of = content["scene"], content["rate"], size, count, content["fingerprint"]
            folder = cls(root, *made_of, splits, attended_photos)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFileError(f"{path} is not a list of pairs ({type(error).__name__}: {error})") from error
        if version != VERSION:
            raise NifiError(f"{path} has version {version}, this program reads {VERSION}: write the pairs again")
        return folder

    @property
    def label(self) -> str:
        """Name for tables: `fox/25KB`."""
        return f"{self.scene}/{self.rate}"

    def path(self, split: str, kind: str, name: str) -> Path:
        """Return the path of the image of view `name`. `kind` is `clean`, `degraded` or `referenced`."""
        return self.root / split / kind / f"{name}.png"

    def content(self, split: str, kind: str, name: str, *, header: bool = False) -> BinaryIO | None:
        """Return the image's bytes if it is not a file at `path`, else None. `header` allows only the first bytes."""
        return None

    def size(self, split: str, kind: str, name: str) -> tuple[int, int]:
        """Return the width and height of an image from its header.

        Raises:
            NifiError: if the image is missing or not readable.
        """
        path, content = self.path(split, kind, name), self.content(split, kind, name, header=True)
        if content is None and not path.is_file():
            raise NifiError(f"{path} is missing but listed in pairs.json: write the pairs again")
        return picture_size(path, content)

    def check(self, inputs: Input = "degraded") -> None:
        """Check that every image exists, has a readable header and the same size as its pair.

        Raises:
            NifiError: names the first file that is missing or of another size, or an invalid attended photo.
        """
        if not self.splits["train"]:
            raise NifiError(f"{self.root} has no training pairs; write some with ns-nifi-pairs")
        photos = set(self.splits["train"])
        for split, views in self.attended_photos.items():
            for view, names in views.items():
                if wrong := [name for name in names if name not in photos or (split == "train" and name == view)]:
                    raise NifiError(f"{self.root}: {view} cannot attend to {wrong[0]}, which is not another train view")
        for split in SPLITS:
            for name in self.splits[split]:
                sizes = [self.size(split, kind, name) for kind in ("clean", inputs)]
                if sizes[0] != sizes[1]:
                    (w0, h0), (w1, h1) = sizes
                    where = self.root / split
                    raise NifiError(
                        f"{where}: {name} is {w0}x{h0} in clean but {w1}x{h1} in {inputs}: sizes must agree"
                    )

    def load(self, split: str, name: str, inputs: Input = "degraded") -> tuple[np.ndarray, np.ndarray]:
        """Return the photo and the view to restore, each [H, W, 3] uint8."""
        return self.picture(split, "clean", name), self.picture(split, inputs, name)

    def picture(self, split: str, kind: str, name: str) -> np.ndarray:
        """Return an image [H, W, 3] uint8."""
        return read_picture(self.path(split, kind, name), self.content(split, kind, name))

    def photos(self, split: str, name: str, count: int) -> list[np.ndarray]:
        """Return up to `count` attended photos of a view, each [H, W, 3] uint8, the most useful first."""
        names = self.attended_photos.get(split, {}).get(name, ())
        return [self.picture("train", "clean", other) for other in names[:count]]


def is_current(root: Path | str, fingerprint: str) -> bool:
    """Return whether `root` holds finished pairs with this fingerprint."""
    try:
        return PairFolder.open(root).fingerprint == fingerprint
    except NifiError:
        return False


class PairWriter:
    """Writes one pair folder: `add` every view, then `finish`.

    `pairs.json` is removed first and written last, so that an interrupted folder never looks complete.
    """

    def __init__(
        self, root: Path | str, *, scene: str, rate: str, bytes: int | None, gaussians: int | None, fingerprint: str
    ):
        self._folder = PairFolder(Path(root), scene, rate, bytes, gaussians, fingerprint, splits={})
        self._names: dict[Split, list[str]] = {split: [] for split in SPLITS}
        self._attended_photos: dict[str, dict[str, tuple[str, ...]]] = {}
        (self._folder.root / "pairs.json").unlink(missing_ok=True)
        for split in SPLITS:
            for kind in KINDS:
                (self._folder.root / split / kind).mkdir(parents=True, exist_ok=True)
                for stale in (self._folder.root / split / kind).glob("*.png"):
                    stale.unlink()

    def add(
        self,
        split: Split,
        name: str,
        clean: Tensor,
        degraded: Tensor,
        referenced: Tensor | None = None,
        *,
        attended_photos: Sequence[str] = (),
    ) -> None:
        """Write one view. Each image is [H, W, 3] in [0, 1] (clamped) and becomes an 8-bit PNG.

        `attended_photos` lists the training views, added before or after, whose photos show most of the view.

        Raises:
            ValueError: if `name` is not a plain file name or was added before, or the sizes differ.
        """
        if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
            raise ValueError(f"a view's name must be a plain file name without folders, got {name!r}")
        if name in self._names[split]:
            raise ValueError(f"view {name!r} was already added to {split}")
        images = {"clean": clean, "degraded": degraded} | ({} if referenced is None else {"referenced": referenced})
        for kind, image in images.items():
            if image.ndim != 3 or image.shape != clean.shape or image.shape[-1] != 3:
                raise ValueError(f"{kind} of {name!r}: expected {list(clean.shape)}, got {list(image.shape)}")
        for kind, image in images.items():
            write_picture(self._folder.path(split, kind, name), image)
        self._names[split].append(name)
        if attended_photos:
            self._attended_photos.setdefault(split, {})[name] = tuple(attended_photos)

    def finish(self) -> PairFolder:
        """Write `pairs.json`, which completes the folder."""
        splits = {split: tuple(self._names[split]) for split in SPLITS}
        folder = replace(self._folder, splits=splits, attended_photos=self._attended_photos)
        for split in SPLITS:
            for kind in KINDS:
                directory = folder.root / split / kind
                if not any(directory.iterdir()):
                    directory.rmdir()
        content: dict[str, Any] = {"version": VERSION, "scene": folder.scene, "rate": folder.rate}
        content |= {"bytes": folder.bytes, "gaussians": folder.gaussians, "fingerprint": folder.fingerprint}
        content |= {"splits": folder.splits, "attended_photos": folder.attended_photos}
        write_text(folder.root / "pairs.json", json.dumps(content, indent=1) + "\n")
        return folder
