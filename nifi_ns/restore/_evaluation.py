"""Evaluation of a restorer: metrics before and after at several strengths, and the choice of the best strength."""

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
    """Metrics of one view before restoration, and after it by strength."""

    folder: PairFolder
    name: str
    before: Values
    after: Mapping[float, Values]
    pictures: tuple[Tensor, ...] = field(repr=False)
    """Before, at full strength, photo: each [H, W, 3] in [0, 1]. Empty if not kept."""


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
    """Return metrics of views before and after restoration.

    Args:
        views: (folder, split, name) of each view.
        restore: restores an image [H, W, 3] in [0, 1] at full strength, given attended photos [H, W, 3] uint8.
        attended_photos: maximum number of attended photos per view, taken from the view's pairs.
        strengths: strengths to measure; those below 1 blend the view and its restoration as `Restorer` does.
        inputs: which images to restore.
        names: the metrics.
        pictures: whether to keep the images with the scores.
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
    """Return (folder, name) of at most `limit` views, spread evenly over the folders and along the names of each."""
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
    """Return log(error after / error before) by metric: negative is better, -0.05 is about 5 % less error.

    The error is the root mean square error for PSNR, one minus the value for similarities, and the value itself where
    lower is better. Undefined metrics are omitted.
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
    """A strength and the change of error on the views that it was chosen on."""

    strength: float
    error_change: float
    """Mean of `error_change` over pair folders, views and metrics; 0 at strength 0."""


def choose_strength(scores: Sequence[ViewScores]) -> Choice:
    """Return the strength with the lowest mean error change that makes no mean metric of any pair folder worse.

    Strength 0, the unchanged view, is always allowed: it switches off a restorer that does not help.
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
    """Group scores by pair folder (one scene at one rate)."""
    folders: dict[str, list[ViewScores]] = {}
    for score in scores:
        folders.setdefault(score.folder.label, []).append(score)
    return list(folders.values())


def mean_change(scores: Sequence[ViewScores], strength: float) -> dict[str, float]:
    """Return the mean `error_change` over views by metric."""
    changes = [error_change(score.before, score.after[strength]) for score in scores]
    names = [name for name in changes[0] if all(name in change for change in changes)]
    return {name: sum(change[name] for change in changes) / len(changes) for name in names}


def _error(metric: str, value: float) -> float:
    if metric == "psnr":
        return 10 ** (-value / 20)
    return value if metric in metrics.LOWER_IS_BETTER else 1 - value
