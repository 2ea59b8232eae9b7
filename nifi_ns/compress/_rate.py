"""Find the smallest scene file for a given loss of PSNR."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nifi_ns import metrics
from nifi_ns.compress._budget import between
from nifi_ns.compress._compressor import Compressed
from nifi_ns.compress._finetune import compress
from nifi_ns.compress._importance import importance_views, measure_importance
from nifi_ns.compress._settings import CompressionSettings
from nifi_ns.compress.codec import BITS, Bits, LevelsOfDetail, decode, encode, fake_quantize, precision_classes
from nifi_ns.errors import NifiError
from nifi_ns.rasterize import render
from nifi_ns.splats import Splats
from nifi_ns.views import View, spaced_views

_VIEWS = 16  # in which losses are measured
_KEPT = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # fractions of the gaussians to try without fine-tuning
_LOWEST = -0.8  # coarsest bits to try without fine-tuning, on a scale where coarse is 0 and fine is 1
_TRIALS = 5  # number of short fine-tuning runs
_TRIAL_STEPS = 0.2  # steps of a trial, as a fraction of all steps
_TRIAL_STAGES = 3  # prunings in a trial, few because measuring importance takes longer than the steps
_SMALLEST = 1 / 32  # smallest size to try, as a fraction of the size without fine-tuning


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
    """Return the smallest scene file found whose PSNR against the photos is at most `loss` dB below that of `splats`.

    The loss is measured in some of the training views; in held-out views it differs. With fine-tuning
    (`settings.steps` above 0), short trials find the size. They lose more than the final run, so the result loses a
    little less than `loss`.

    Args:
        splats: the gaussians, not modified.
        views: cameras with photos.
        loss: accepted loss of PSNR in dB, above 0.
        settings: the target size is ignored.
        background: [3] RGB colour behind the scene; black if None.
        antialiased: whether the splats are drawn antialiased.
        progress: show a progress bar for the final fine-tuning.

    Raises:
        NifiError: if there are no photos, the loss is not positive, or no file has a small enough loss.
    """
    if not views or views[0].image is None:
        raise NifiError("a loss of PSNR is measured against photos, and there are none: give a --target-size instead")
    if loss <= 0:
        raise NifiError(f"the loss of PSNR is {loss} dB, expected more than 0")
    drawn: dict[str, Any] = {"background": background, "antialiased": antialiased}
    measured = spaced_views(views, _VIEWS)
    least = _quality(splats, measured, drawn) - loss
    degrees = (
        range(splats.sh_degree + 1) if settings.sh_degree == "auto" else [min(settings.sh_degree, splats.sh_degree)]
    )
    files = [_without_tuning(splats.with_sh_degree(d), views, least, settings, drawn) for d in degrees]
    untuned = min((file for file in files if file), key=lambda file: len(file.data), default=None)
    kept = splats.with_sh_degree(untuned.splats.sh_degree if untuned else max(degrees))
    settings = replace(settings, sh_degree=kept.sh_degree)
    if settings.steps == 0:
        if untuned is None:
            raise NifiError(
                f"no file loses at most {loss} dB without fine-tuning: allow a larger loss, a higher SH degree or steps"
            )
        return untuned
    most = len(encode(kept, BITS["mid"]) if untuned is None else untuned.data)
    short = replace(settings, steps=max(1, round(_TRIAL_STEPS * settings.steps)))
    short = replace(short, stages=min(_TRIAL_STAGES, settings.stages))
    low, high, best = _SMALLEST, 1.0, untuned
    for _ in range(_TRIALS):
        middle = (low * high) ** 0.5
        trial = compress(splats, views, _sized(short, middle * most), progress=False, **drawn)
        if _quality(trial.splats, measured, drawn) >= least:
            high, best = middle, trial
        else:
            low = middle
    tuned = compress(splats, views, _sized(settings, high * most), progress=progress, **drawn)
    if _quality(tuned.splats, measured, drawn) >= least:
        return tuned
    if best is None:
        raise NifiError(f"no file loses at most {loss} dB: allow a larger loss, a higher SH degree, or more steps")
    return best


def _without_tuning(
    splats: Splats, views: Sequence[View], least: float, settings: CompressionSettings, drawn: dict[str, Any]
) -> Compressed | None:
    """Return the smallest file that reaches a PSNR of `least` dB by pruning and quantisation alone, or None."""
    cameras = importance_views(views, settings.importance_views)
    importance = measure_importance(splats, cameras, **drawn, seed=settings.seed)
    order = importance.opacity_sensitivity.argsort(descending=True)
    measured, lod = spaced_views(views, _VIEWS), LevelsOfDetail(settings.lod_levels, settings.lod_ratio)
    best: Compressed | None = None
    for part in _KEPT:
        first = order[: max(1, round(part * len(splats)))]
        kept, precision = splats[first], precision_classes(importance.position_sensitivity[first])

        def suffices(bits: Bits, kept: Splats = kept, precision: Tensor = precision) -> bool:
            return _quality(fake_quantize(kept, bits, precision), measured, drawn) >= least

        bits = _coarsest(suffices)
        if bits is None:
            break
        data = encode(kept, bits, precision, lod.counts(len(kept)), antialiased=drawn["antialiased"])
        if best is not None and len(data) >= len(best.data):
            break
        best = Compressed(data, decode(data).to(splats.device), bits)
    return best


def _coarsest(suffices: Callable[[Bits], bool]) -> Bits | None:
    coarse, fine = BITS["coarse"], BITS["fine"]
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
    """Return the mean PSNR against the photos, in dB."""
    psnrs = []
    for view in views:
        assert view.image is not None
        image = render(splats, view, **drawn).rgb.clamp(0, 1)
        psnrs.append(metrics.compute(image, view.image.to(image), names=["psnr"]))
    return metrics.mean(psnrs)["psnr"] or 0.0


def _sized(settings: CompressionSettings, size: float) -> CompressionSettings:
    return replace(settings, target_size=str(round(size)))
