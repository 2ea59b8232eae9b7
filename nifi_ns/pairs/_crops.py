"""The stream of training crops. Crop `i` depends only on the seed and `i`, so that a training can be resumed."""

import fnmatch
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle, islice
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from nifi_ns.errors import NifiError
from nifi_ns.pairs._folders import Input, PairFolder


class Crop(TypedDict):
    """One training example."""

    clean: Tensor
    """[3, size, size] in [0, 1], the photo."""
    degraded: Tensor
    """[3, size, size] in [0, 1], the restorer's input: a degraded or a referenced render."""
    attended_photos: Tensor
    """[R, 3, size, size] in [0, 1], crops of photos of other cameras, the most useful first."""


class PairCrops(Dataset[Crop]):
    """Random square crops of the pairs in many folders, mirrored half of the time.

    The probability of a view is proportional to the weight of its rate. A rate with twice the weight is drawn twice as
    often, and scenes count by their number of views.

    Attended photos are cropped at the same place as the view, like a restorer's tiles. Training and inference then have
    the same misalignment, and no cameras are needed. A view with too few photos repeats them. A view with none attends
    to itself, which adds no information.
    """

    def __init__(
        self,
        folders: Sequence[PairFolder],
        *,
        size: int,
        seed: int,
        length: int,
        inputs: Input = "degraded",
        names: Mapping[str, Sequence[str]] | None = None,
        rate_weights: Mapping[str, float] | None = None,
        attended_photos: int = 0,
        cache_bytes: int = 2**29,
    ):
        """Set up crops of `size` pixels from the `train` views of `folders`, or only from `names` (by scene).

        Raises:
            NifiError: if an image is smaller than a crop, a weight is for an unknown rate, no views are left, or
                `attended_photos` are requested and no view lists any.
        """
        weights = dict(rate_weights or {})
        if unknown := sorted(set(weights) - {folder.rate for folder in folders}):
            rates = ", ".join(sorted({folder.rate for folder in folders}))
            raise NifiError(f"rate_weights: no pairs have the rate {unknown[0]!r}, expected some of {rates}")
        if attended_photos and not any(folder.attended_photos.get("train") for folder in folders):
            raise NifiError("attended_photos: these pairs list no attended photos, write the pairs again")
        self.size, self.seed, self.length, self.attended_photos = size, seed, length, attended_photos
        self.inputs: Input = inputs
        self._views: list[tuple[PairFolder, list[str]]] = []
        self._weights: list[float] = []
        for folder in folders:
            weight = float(weights.get(folder.rate, 1.0))
            kept = set(folder.splits["train"] if names is None else names[folder.scene])
            views = [name for name in folder.splits["train"] if name in kept]
            if views and weight > 0:
                self._views.append((folder, views))
                self._weights.append(weight)
        if not self._views:
            raise NifiError("no training pairs are left: give more pairs, fewer validation scenes or positive weights")
        for folder, views in self._views:
            for name in views:
                width, height = folder.size("train", "clean", name)
                if min(width, height) < size:
                    path = folder.path("train", "clean", name)
                    raise NifiError(f"{path} is {width}x{height}, smaller than a crop of {size}: set a smaller crop")
        self._ends = np.cumsum([weight * len(v) for weight, (_, v) in zip(self._weights, self._views, strict=True)])
        self._cache: OrderedDict[tuple[int, str, str], np.ndarray] = OrderedDict()
        self._cached_bytes, self._cache_bytes = 0, cache_bytes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Crop:
        """Return crop `index` of the stream."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, index])
        number, view = self._draw(rng.random())
        folder, name = self._views[number][0], self._views[number][1][view]
        clean, degraded = (self._picture(number, kind, name) for kind in ("clean", self.inputs))
        others = folder.attended_photos.get("train", {}).get(name, ())[: self.attended_photos]
        photos = [self._picture(number, "clean", other) for other in others] or [degraded]
        height, width = clean.shape[:2]
        y, x = rng.integers(height - self.size + 1), rng.integers(width - self.size + 1)
        seen = (_fitted(photo, height, width) for photo in islice(cycle(photos), self.attended_photos))
        crop = np.stack([picture[y : y + self.size, x : x + self.size] for picture in (clean, degraded, *seen)])
        if rng.random() < 0.5:
            crop = crop[:, :, ::-1]
        crops = torch.from_numpy(np.ascontiguousarray(crop)).permute(0, 3, 1, 2).float() / 255
        return {"clean": crops[0], "degraded": crops[1], "attended_photos": crops[2:]}

    def _draw(self, share: float) -> tuple[int, int]:
        """Return the indices of a folder and of a view in it, at a `share` in [0, 1) of the total weight."""
        at = share * self._ends[-1]
        number = min(int(np.searchsorted(self._ends, at, side="right")), len(self._ends) - 1)
        weight, count = self._weights[number], len(self._views[number][1])
        return number, min(max(int((at - self._ends[number]) / weight + count), 0), count - 1)

    def _picture(self, number: int, kind: str, name: str) -> np.ndarray:
        """Return a picture [H, W, 3] uint8 from the cache or disk. Decoding a PNG is slower than cropping."""
        key = number, kind, name
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        picture = self._views[number][0].picture("train", kind, name)
        self._cache[key] = picture
        self._cached_bytes += picture.nbytes
        while len(self._cache) > 1 and self._cached_bytes > self._cache_bytes:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return picture


def _fitted(photo: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a photo to [height, width, 3] uint8."""
    if photo.shape[:2] == (height, width):
        return photo
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BOX))


def split_validation(
    folders: Sequence[PairFolder], every: int = 8, validation_scenes: Collection[str] = ()
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Split the `train` views into training and validation views by scene, the same at all rates.

    Every `every`-th training view of a scene becomes a validation view. With `validation_scenes`, all training views of
    these scenes become validation views instead, and other scenes have none. Scenes with fewer than four training views
    have no validation views otherwise. Test views are never used, so that choices made on validation views (best step,
    strength) can be reported on test views.
    """
    views: dict[str, set[str]] = {}
    for folder in folders:
        views.setdefault(folder.scene, set()).update(folder.splits["train"])
    train: dict[str, list[str]] = {}
    validation: dict[str, list[str]] = {}
    for scene, found in views.items():
        names = sorted(found)
        if validation_scenes:
            train[scene], validation[scene] = ([], names) if scene in validation_scenes else (names, [])
            continue
        start = min(every // 2, len(names) // 2)
        validation[scene] = names[start::every] if len(names) >= 4 else []
        train[scene] = sorted(found.difference(validation[scene]))
    return train, validation


def matching_scenes(folders: Sequence[PairFolder], patterns: Sequence[str]) -> frozenset[str]:
    """Return the scenes of `folders` that match any of the names or shell patterns.

    Raises:
        NifiError: if a pattern matches no scene.
    """
    scenes = {folder.scene for folder in folders}
    found = {pattern: fnmatch.filter(scenes, pattern) for pattern in patterns}
    if empty := next((pattern for pattern, names in found.items() if not names), None):
        some = ", ".join(sorted(scenes)[:8]) + (", ..." if len(scenes) > 8 else "")
        raise NifiError(f"validation_scenes: no scene matches {empty!r}, expected some of {some}")
    return frozenset(name for names in found.values() for name in names)
