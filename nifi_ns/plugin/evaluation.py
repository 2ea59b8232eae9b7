"""Evaluation of a run with metrics: its held-out views before compression, after it, and restored."""

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
"""Increase this when the same run gives other numbers, so that reports measure it again."""

Pictures = dict[Variant, Tensor]
"""[H, W, 3] by variant."""


def evaluate(
    opened: Run,
    *,
    consistency: bool = False,
    on_view: Callable[[View, Pictures], None] | None = None,
    faster: tuple[str | None, ...] = (),
) -> list[Row]:
    """Return one row per variant and held-out view of a run, followed by one row with each variant's mean.

    Args:
        opened: the run, opened from its own config or from a scene file's.
        consistency: also measure flicker, see `nifi_ns.references.consistency`.
        on_view: called with each view and its picture by variant.
        faster: the options that make the restorer faster (decoder, compilation), if any.
    """
    file, shown, full = opened.scene_file, opened.model.splats, opened.uncompressed
    rate, made_of = opened.rate, evaluated_from(opened, faster)
    compressed = (shown.ply_size if file is None else file.stat().st_size, len(shown))
    sizes = {"uncompressed": (full.ply_size, len(full))}
    measured: dict[Variant, dict[str, dict[str, float | None]]] = {}
    agreements: dict[Variant, dict[str, dict[str, float | None]]] = {}
    for view in track(opened.eval_views, f"{opened.scene} {rate}", transient=True):
        assert view.image is not None
        by_variant = pictures(opened, view)
        if on_view is not None:
            on_view(view, by_variant)
        if consistency:
            for variant, value in _consistency(opened, view, by_variant).items():
                agreements.setdefault(variant, {})[view.name] = {"consistency": value}
        for variant, picture in by_variant.items():
            measured.setdefault(variant, {})[view.name] = metrics.compute(picture, view.image)
    rows: list[Row] = []
    for variant, values in measured.items():
        size = sizes.get(variant, compressed)
        extra = agreements.get(variant, {})
        for name, row in values.items():
            rows.append(Row(opened.scene, variant, *size, row, rate, name, {**extra.get(name, {}), "made_of": made_of}))
        average = metrics.mean(list(values.values()))
        more = metrics.mean([v for v in extra.values() if v["consistency"] is not None])
        rows.append(Row(opened.scene, variant, *size, average, rate, more={**more, "made_of": made_of}))
    return rows


def evaluated_from(opened: Run, faster: tuple[str | None, ...] = ()) -> str:
    """Return a hash of everything that determines the results of `evaluate`; rows store it as `made_of`.

    It covers the scene file, the run's checkpoint, its restorer, its held-out photos and the model's settings.
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
    """Return the picture of `view` for each variant, [H, W, 3]."""
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
