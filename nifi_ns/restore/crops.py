"""The stream of training crops: item `i` depends on the seed and `i` alone, so that a resumed run misses nothing."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nifi_ns.errors import NifiError
from nifi_ns.restore.pairs import Inputs, PairFolder, image_size


class Crop(TypedDict):
    """One training example."""

    clean: Tensor
    """[3, size, size] in [0, 1], the photo."""
    degraded: Tensor
    """[3, size, size] in [0, 1], what the restorer gets: a degraded or a referenced render."""


class PairCrops(Dataset[Crop]):
    """Random square crops, mirrored half of the time, of the pairs in many folders.

    A view is drawn with a probability proportional to its rate's weight, so a rate with twice the weight is seen twice
    as often and scenes count by their number of views.
    """

    def __init__(
        self,
        folders: Sequence[PairFolder],
        *,
        size: int,
        seed: int,
        length: int,
        inputs: Inputs = "degraded",
        names: Mapping[str, Sequence[str]] | None = None,
        rate_weights: Mapping[str, float] | None = None,
        cache_bytes: int = 2**29,
    ):
        """Crops of `size` pixels from the `train` views of `folders`, or of `names` (by scene) among them.

        Raises:
            NifiError: if an image is smaller than a crop, a weight names no rate, or nothing is left to draw from.
        """
        weights = dict(rate_weights or {})
        if unknown := sorted(set(weights) - {folder.rate for folder in folders}):
            rates = ", ".join(sorted({folder.rate for folder in folders}))
            raise NifiError(f"no pairs have the rate {unknown[0]!r} of rate_weights; there are {rates}")
        self.size, self.seed, self.length = size, seed, length
        self.inputs: Inputs = inputs
        self._views: list[tuple[PairFolder, str]] = []
        probabilities: list[float] = []
        for folder in folders:
            weight = float(weights.get(folder.rate, 1.0))
            kept = folder.splits["train"] if names is None else names[folder.scene]
            for name in folder.splits["train"]:
                if name in kept and weight > 0:
                    self._views.append((folder, name))
                    probabilities.append(weight)
        if not self._views:
            raise NifiError("no training pairs are left: give more pairs, or a rate weight above zero")
        for folder, name in self._views:
            path = folder.path("train", "clean", name)
            if min(image_size(path)) < size:
                width, height = image_size(path)
                raise NifiError(f"{path} is {width}x{height}, smaller than a crop of {size}: give a smaller crop")
        self._cumulative = np.cumsum(probabilities) / np.sum(probabilities)
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cache_bytes = cache_bytes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Crop:
        """Crop `index` of the stream."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, index])
        pair = self._pair(int(np.searchsorted(self._cumulative, rng.random(), side="right")))
        height, width = pair.shape[1:3]
        y, x = rng.integers(height - self.size + 1), rng.integers(width - self.size + 1)
        crop = pair[:, y : y + self.size, x : x + self.size]
        if rng.random() < 0.5:
            crop = crop[:, :, ::-1]
        clean, degraded = torch.from_numpy(np.ascontiguousarray(crop)).permute(0, 3, 1, 2).float() / 255
        return {"clean": clean, "degraded": degraded}

    def _pair(self, view: int) -> np.ndarray:
        """[2, H, W, 3] uint8 of one view, kept in memory while there is room: decoding a PNG costs more than a crop."""
        if view in self._cache:
            self._cache.move_to_end(view)
            return self._cache[view]
        folder, name = self._views[view]
        pair = np.stack(folder.load("train", name, self.inputs))
        self._cache[view] = pair
        while len(self._cache) > 1 and len(self._cache) * pair.nbytes > self._cache_bytes:
            self._cache.popitem(last=False)
        return pair


def split_validation(
    folders: Sequence[PairFolder], every: int = 8
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Training and validation views by scene: every `every`-th training view of a scene, at all its rates, validates.

    The test split is not touched: what is chosen on validation views (the best step, the strength) can then be
    reported on test views. Scenes with fewer than four training views validate nothing.
    """
    train: dict[str, list[str]] = {}
    validation: dict[str, list[str]] = {}
    for scene in dict.fromkeys(folder.scene for folder in folders):
        names = sorted({name for folder in folders if folder.scene == scene for name in folder.splits["train"]})
        start = min(every // 2, len(names) // 2)
        validation[scene] = names[start::every] if len(names) >= 4 else []
        train[scene] = [name for name in names if name not in validation[scene]]
    return train, validation
