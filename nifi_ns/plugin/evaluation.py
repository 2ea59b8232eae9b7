"""Evaluation of a run: its held-out views before compression, after it, and restored, with metrics."""

from collections.abc import Callable
from pathlib import Path

from rich.progress import track
from torch import Tensor

from nifi_ns import metrics
from nifi_ns.files import fingerprint
from nifi_ns.novel_views import stepped
from nifi_ns.plugin.runs import Run
from nifi_ns.references import FRAME
from nifi_ns.references import consistency as agreement
from nifi_ns.results import Row, Variant
from nifi_ns.views import View

VERSION = 1
"""Increased whenever the same run would give other numbers, so that a report measures it anew."""

Pictures = dict[Variant, Tensor]
"""[H, W, 3] by variant."""


def evaluate(
    opened: Run,
    *,
    consistency: bool = False,
    seen: Callable[[View, Pictures], None] | None = None,
    faster: tuple[str | None, ...] = (),
) -> list[Row]:
    """Return one row for each variant and held-out view of a run, and after them one for each variant's mean.

    Args:
        opened: the run, opened by its own config or by that of a scene file.
        consistency: also measure whether pictures flicker, see `nifi_ns.references.consistency`.
        seen: called with each view and its picture by variant.
        faster: what was changed in the restorer to make it faster, if anything.
    """
    file, shown, full = opened.scene_file, opened.model.splats, opened.uncompressed
    rate, made_of = opened.rate, evaluated_from(opened, faster)
    compressed = (shown.ply_size if file is None else file.stat().st_size, len(shown))
    sizes = {"uncompressed": (full.ply_size, len(full))}
    measured: dict[Variant, dict[str, dict[str, float | None]]] = {}
    steady: dict[Variant, dict[str, dict[str, float | None]]] = {}
    for view in track(opened.eval_views, f"{opened.scene} {rate}", transient=True):
        assert view.image is not None
        shown_here = pictures(opened, view)
        if seen is not None:
            seen(view, shown_here)
        if consistency:
            for variant, value in _consistency(opened, view, shown_here).items():
                steady.setdefault(variant, {})[view.name] = {"consistency": value}
        for variant, picture in shown_here.items():
            measured.setdefault(variant, {})[view.name] = metrics.compute(picture, view.image)
    rows: list[Row] = []
    for variant, values in measured.items():
        size = sizes.get(variant, compressed)
        extra = steady.get(variant, {})
        for name, row in values.items():
            rows.append(Row(opened.scene, variant, *size, row, rate, name, {**extra.get(name, {}), "made_of": made_of}))
        average = metrics.mean(list(values.values()))
        more = metrics.mean([v for v in extra.values() if v["consistency"] is not None])
        rows.append(Row(opened.scene, variant, *size, average, rate, more={**more, "made_of": made_of}))
    return rows


def evaluated_from(opened: Run, faster: tuple[str | None, ...] = ()) -> str:
    """Return a hash of all that decides what `evaluate` measures: rows have it as `made_of`.

    That is the scene file, the run's checkpoint, its restorer, its held-out photos and the model's settings.
    """
    model, file = opened.model, opened.scene_file
    dataset = opened.pipeline.datamanager.eval_dataset
    assert dataset is not None
    files = [*opened.config.get_checkpoint_dir().glob("step-*.ckpt"), *map(Path, dataset.image_filenames)]
    if (folder := model.restorer_folder) is not None and Path(folder).is_dir():
        files += [path for path in Path(folder).iterdir() if path.is_file()]
    decoded = b"" if file is None else file.read_bytes()
    return fingerprint(VERSION, model.config, folder, faster, decoded, files=files)


def _consistency(opened: Run, view: View, shown: Pictures) -> dict[Variant, float | None]:
    """Return how well each variant's picture agrees with the next frame of a video, in dB."""
    nearest = min(opened.train_views.cameras, key=lambda other: float((other.centre - view.centre).norm()))
    later = stepped(view, nearest, FRAME)
    moved, model = pictures(opened, later), opened.model
    splats = {variant: opened.uncompressed if variant == "uncompressed" else model.splats for variant in shown}
    depths = {variant: [model.render_view(v, s)[1] for v in (view, later)] for variant, s in splats.items()}
    return {
        variant: agreement(view, picture, depths[variant][0], later, moved[variant], depths[variant][1])
        for variant, picture in shown.items()
    }


def pictures(opened: Run, view: View) -> Pictures:
    """Return each variant's picture of `view`, [H, W, 3]."""
    model = opened.model
    shown: Pictures = {"uncompressed": model.render_view(view, opened.uncompressed)[0]}
    if opened.scene_file is None:
        return shown
    rgb, depth = model.render_view(view, model.splats)
    shown["compressed"] = rgb
    request = model.view_restorer.request(view, rgb, depth)
    shown["referenced"] = request.referenced
    if model.restorer_folder is not None:
        shown["restored"] = request.picture
    return shown
