"""The stream of training crops: item `i` depends on the seed and `i` alone, so that a resumed run misses nothing."""

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
    """[3, size, size] in [0, 1], what the restorer gets: a degraded or a referenced render."""
    attended_photos: Tensor
    """[R, 3, size, size] in [0, 1], of photos of other cameras, the most useful first."""


class PairCrops(Dataset[Crop]):
    """Random square crops, mirrored half of the time, of the pairs in many folders.

    A view is drawn with a probability proportional to its rate's weight, so a rate with twice the weight is seen twice
    as often and scenes count by their number of views.

    Reference photos are cropped where the view is, as a restorer's tiles are: the network meets them in training as far
    from their places as later, and nobody needs to know the cameras. A view with too few repeats them; one with none
    refers to itself, which tells it nothing new.
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
        """Crops of `size` pixels from the `train` views of `folders`, or of `names` (by scene) among them.

        Raises:
            NifiError: if an image is smaller than a crop, a weight names no rate, nothing is left to draw from, or
                no view has any of the `attended_photos` to give with each.
        """
        weights = dict(rate_weights or {})
        if unknown := sorted(set(weights) - {folder.rate for folder in folders}):
            rates = ", ".join(sorted({folder.rate for folder in folders}))
            raise NifiError(f"no pairs have the rate {unknown[0]!r} of rate_weights; there are {rates}")
        if attended_photos and not any(folder.attended_photos.get("train") for folder in folders):
            raise NifiError("attended_photos: these pairs name no photos to attend to; write them again")
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
            raise NifiError("no training pairs are left: give more, validate on fewer, or weigh a rate above zero")
        for folder, views in self._views:
            for name in views:
                width, height = folder.size("train", "clean", name)
                if min(width, height) < size:
                    path = folder.path("train", "clean", name)
                    raise NifiError(f"{path} is {width}x{height}, smaller than a crop of {size}: give a smaller crop")
        self._ends = np.cumsum([weight * len(v) for weight, (_, v) in zip(self._weights, self._views, strict=True)])
        self._cache: OrderedDict[tuple[int, str, str], np.ndarray] = OrderedDict()
        self._cached_bytes, self._cache_bytes = 0, cache_bytes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Crop:
        """Crop `index` of the stream."""
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
        """Number of a folder, and of a view in it, at a `share` in [0, 1) of all their weights."""
        at = share * self._ends[-1]
        number = min(int(np.searchsorted(self._ends, at, side="right")), len(self._ends) - 1)
        weight, count = self._weights[number], len(self._views[number][1])
        return number, min(max(int((at - self._ends[number]) / weight + count), 0), count - 1)

    def _picture(self, number: int, kind: str, name: str) -> np.ndarray:
        """[H, W, 3] uint8, kept in memory while there is room: decoding a PNG costs more than a crop."""
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
    """[height, width, 3] uint8 of a photo of any size."""
    if photo.shape[:2] == (height, width):
        return photo
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BOX))


def split_validation(
    folders: Sequence[PairFolder], every: int = 8, validation_scenes: Collection[str] = ()
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Training and validation views by scene: every `every`-th training view of a scene, at all its rates, validates.

    With `validation_scenes` it is their training views that validate, and all of the other scenes' that train.
    The test split is not touched: what is chosen on validation views (the best step, the strength) can then be
    reported on test views. Scenes with fewer than four training views validate nothing.
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
        NifiError: if one of them matches none.
    """
    scenes = {folder.scene for folder in folders}
    found = {pattern: fnmatch.filter(scenes, pattern) for pattern in patterns}
    if empty := next((pattern for pattern, names in found.items() if not names), None):
        some = ", ".join(sorted(scenes)[:8]) + (", ..." if len(scenes) > 8 else "")
        raise NifiError(f"validation_scenes: no scene is called {empty!r}; there are {some}")
    return frozenset(name for names in found.values() for name in names)
