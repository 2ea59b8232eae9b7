"""From a loss of quality to a size: the smallest scene file that looks almost as good."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nifi_ns import metrics
from nifi_ns.compress._budget import between
from nifi_ns.compress._compressor import Compressed
from nifi_ns.compress._finetune import compress
from nifi_ns.compress._importance import importance, judging_views, spread
from nifi_ns.compress._settings import CompressionSettings
from nifi_ns.compress.codec import PRESETS, Bits, Ladder, decode, encode, fake_quantize, grades
from nifi_ns.errors import NifiError
from nifi_ns.rasterize import render
from nifi_ns.splats import Splats
from nifi_ns.views import View

_VIEWS = 16  # that a loss is measured in
_KEPT = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # parts of the gaussians that are tried without fine-tuning
_LOWEST = -0.8  # bits that are tried without fine-tuning, on the way from coarse (0) to fine (1)
_TRIALS = 5  # short fine-tunings
_TRIAL_STEPS = 0.2  # of the steps
_TRIAL_STAGES = 3  # of pruning: what matters is told by looking at views, which would take longer than the steps
_SMALLEST = 1 / 32  # of the size without fine-tuning


def compress_to_loss(
    splats: Splats,
    views: Sequence[View],
    loss: float,
    settings: CompressionSettings,
    *,
    background: Tensor | None = None,
    antialiased: bool = False,
    progress: bool = True,
) -> Compressed:
    """The smallest scene file found whose PSNR against the photos is at most `loss` dB below that of `splats`.

    Losses are measured in some of the training views: in those that were not trained on they differ. With fine-tuning
    (`settings.steps`) the size is found by short trials, which do worse than the last one will, and no more: what comes
    out loses a little less than asked.

    Args:
        splats: what to compress.
        views: with photos.
        loss: dB, more than zero.
        settings: all but the target size.
        background, antialiased: how they are drawn, as for `compress`.
        progress: show a progress bar of the last fine-tuning.

    Raises:
        NifiError: if there are no photos, the loss is not positive, or no file loses so little.
    """
    if not views or views[0].image is None:
        raise NifiError("a loss of PSNR is measured against photos, and a .ply has none: give a --target-size")
    if loss <= 0:
        raise NifiError(f"the loss of PSNR must be more than zero, not {loss}")
    drawn: dict[str, Any] = {"background": background, "antialiased": antialiased}
    watched = spread(views, _VIEWS)
    least = _quality(splats, watched, drawn) - loss
    degrees = (
        range(splats.sh_degree + 1) if settings.sh_degree == "auto" else [min(settings.sh_degree, splats.sh_degree)]
    )
    files = [_without_tuning(splats.with_sh_degree(d), views, least, settings, drawn) for d in degrees]
    untuned = min((file for file in files if file), key=lambda file: len(file.data), default=None)
    kept = splats.with_sh_degree(untuned.splats.sh_degree if untuned else max(degrees))
    settings = replace(settings, sh_degree=kept.sh_degree)
    if settings.steps == 0:
        if untuned is None:
            raise NifiError(f"without fine-tuning no file loses less than {loss} dB: allow more, steps or harmonics")
        return untuned
    most = len(encode(kept, PRESETS["mid"]) if untuned is None else untuned.data)
    short = replace(settings, steps=max(1, round(_TRIAL_STEPS * settings.steps)))
    short = replace(short, stages=min(_TRIAL_STAGES, settings.stages))
    low, high, best = _SMALLEST, 1.0, untuned
    for _ in range(_TRIALS):
        middle = (low * high) ** 0.5
        trial = compress(splats, views, _sized(short, middle * most), progress=False, **drawn)
        if _quality(trial.splats, watched, drawn) >= least:
            high, best = middle, trial
        else:
            low = middle
    tuned = compress(splats, views, _sized(settings, high * most), progress=progress, **drawn)
    if _quality(tuned.splats, watched, drawn) >= least:
        return tuned
    if best is None:
        raise NifiError(f"no file was found that loses less than {loss} dB: allow more, steps or harmonics")
    return best


def _without_tuning(
    splats: Splats, views: Sequence[View], least: float, settings: CompressionSettings, drawn: dict[str, Any]
) -> Compressed | None:
    """The smallest of the files with fewer gaussians, more coarsely quantised, of quality `least`."""
    matters = importance(splats, judging_views(views, settings.importance_views), **drawn, seed=settings.seed)
    order = matters.fading.argsort(descending=True)
    watched, ladder = spread(views, _VIEWS), Ladder(settings.levels, settings.level_ratio)
    best: Compressed | None = None
    for part in _KEPT:
        first = order[: max(1, round(part * len(splats)))]
        kept, graded = splats[first], grades(matters.changing[first])
        bits = _coarsest(lambda bits: _quality(fake_quantize(kept, bits, graded), watched, drawn) >= least)  # noqa: B023
        if bits is None:
            break
        data = encode(kept, bits, graded, ladder.counts(len(kept)), antialiased=drawn["antialiased"])
        if best is not None and len(data) >= len(best.data):
            break
        best = Compressed(data, decode(data).to(splats.device), bits)
    return best


def _coarsest(suffices: Callable[[Bits], bool]) -> Bits | None:
    coarse, fine = PRESETS["coarse"], PRESETS["fine"]
    if not suffices(fine):
        return None
    low, high = _LOWEST, 1.0
    for _ in range(6):
        middle = (low + high) / 2
        if suffices(between(coarse, fine, middle)):
            high = middle
        else:
            low = middle
    return between(coarse, fine, high)


@torch.no_grad()
def _quality(splats: Splats, views: Sequence[View], drawn: dict[str, Any]) -> float:
    """Mean PSNR against the photos."""
    measured = []
    for view in views:
        assert view.image is not None
        image = render(splats, view, **drawn).rgb.clamp(0, 1)
        measured.append(metrics.compute(image, view.image.to(image), names=["psnr"]))
    return metrics.mean(measured)["psnr"] or 0.0


def _sized(settings: CompressionSettings, size: float) -> CompressionSettings:
    return replace(settings, target_size=str(round(size)))
