"""What a restorer is worth: views before and after at several strengths, and the criterion that chooses among them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nifi_ns import metrics
from nifi_ns.metrics import REFERENCE_METRICS
from nifi_ns.pairs import Input, PairFolder

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)

Values = Mapping[str, float | None]


@dataclass
class ViewScores:
    """One view's metrics as it came (`before`) and by strength of restoration (`after`)."""

    folder: PairFolder
    name: str
    before: Values
    after: Mapping[float, Values]
    pictures: tuple[Tensor, ...] = field(repr=False)
    """Before, at full strength, photo: each [H, W, 3] in [0, 1]; or none."""


def score_views(
    views: Iterable[tuple[PairFolder, str, str]],
    restore: Callable[[Tensor, Sequence[np.ndarray]], Tensor],
    *,
    attended_photos: int = 0,
    strengths: Sequence[float] = (1.0,),
    inputs: Input = "degraded",
    names: Iterable[str] = REFERENCE_METRICS,
    pictures: bool = True,
) -> list[ViewScores]:
    """Metrics of views given as (folder, split, name); `restore` maps [H, W, 3] in [0, 1] at full strength.

    It also gets up to `attended_photos` photos [H, W, 3] uint8, as the view's pairs name them. Strengths in between
    blend the view and its restoration, as `Restorer.strength` does. `pictures` says whether to keep them with the
    scores.
    """
    names = tuple(names)
    scores = []
    for folder, split, name in views:
        clean, before = (torch.from_numpy(image).float() / 255 for image in folder.load(split, name, inputs))
        restored = restore(before, folder.photos(split, name, attended_photos)).to(before).clamp(0, 1)
        first = metrics.compute(before, clean, names=names)
        blends = {s: before.lerp(restored, s) for s in strengths}
        after = {s: metrics.compute(image, clean, names=names) if s else first for s, image in blends.items()}
        scores.append(ViewScores(folder, name, first, after, (before, restored, clean) if pictures else ()))
    return scores


def spread_views(folders: Sequence[PairFolder], names: Callable[[PairFolder], Sequence[str]], limit: int) -> list:
    """(folder, name) for at most `limit` views, evenly over the folders that have any and along each one's names."""
    folders = [folder for folder in folders if names(folder)]
    if len(folders) > limit:
        folders = [folders[(2 * i + 1) * len(folders) // (2 * limit)] for i in range(limit)]
    each = limit // max(1, len(folders))
    chosen = []
    for folder in folders:
        available = names(folder)
        count = min(each, len(available))
        chosen += [(folder, available[(2 * i + 1) * len(available) // (2 * count)]) for i in range(count)]
    return chosen


def error_change(before: Values, after: Values) -> dict[str, float]:
    """By metric, the natural logarithm of error after over error before: negative is better, -0.05 is 5 % less error.

    Errors are the root mean square error for PSNR, one minus the value for similarities, and the value itself where
    lower is better. Metrics that are undefined are left out.
    """
    changes = {}
    for name, value in before.items():
        other = after[name]
        if value is not None and other is not None:
            errors = [max(_error(name, v), 1e-6) for v in (value, other)]
            changes[name] = math.log(errors[1] / errors[0])
    return changes


@dataclass(frozen=True)
class Choice:
    """A strength, and what it does to the views it was chosen on."""

    strength: float
    error_change: float
    """Mean over scenes-at-a-rate, views and metrics of `error_change`; 0 if nothing is restored."""


def choose_strength(scores: Sequence[ViewScores]) -> Choice:
    """The strength that lowers errors most, among those by which no metric's mean gets worse for any scene at any rate.

    Strength 0, the view as it came, is always allowed: a restorer that helps nowhere is switched off rather than shown.
    """
    folders = by_folder(scores)
    best = Choice(0.0, 0.0)
    for strength in scores[0].after if scores else ():
        changes = [mean_change(group, strength) for group in folders]
        values = [value for change in changes for value in change.values()]
        if values and max(values) <= 0 and sum(values) / len(values) < best.error_change:
            best = Choice(strength, sum(values) / len(values))
    return best


def by_folder(scores: Iterable[ViewScores]) -> list[list[ViewScores]]:
    """The scores of each pair folder, one scene at one rate."""
    folders: dict[str, list[ViewScores]] = {}
    for score in scores:
        folders.setdefault(score.folder.label, []).append(score)
    return list(folders.values())


def mean_change(scores: Sequence[ViewScores], strength: float) -> dict[str, float]:
    """Mean `error_change` over views, by metric."""
    changes = [error_change(score.before, score.after[strength]) for score in scores]
    names = [name for name in changes[0] if all(name in change for change in changes)]
    return {name: sum(change[name] for change in changes) / len(changes) for name in names}


def _error(metric: str, value: float) -> float:
    if metric == "psnr":
        return 10 ** (-value / 20)
    return value if metric in metrics.LOWER_IS_BETTER else 1 - value
