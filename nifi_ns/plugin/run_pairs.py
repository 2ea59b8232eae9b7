"""Writes the pairs of a run, for training restorers: every photo with its render."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch
from rich.progress import track

from nifi_ns.compress import measure_importance
from nifi_ns.errors import NifiError
from nifi_ns.files import fingerprint
from nifi_ns.pairs import PairFolder, PairWriter, is_current
from nifi_ns.plugin.runs import Run, load_run
from nifi_ns.views import spaced_views

VERSION = 5
"""Increase this when the same splats give other pairs, so that cached pairs are written again."""

FEWEST = 4096
"""Gaussians of the coarsest pruning level, as in the NiFi paper's training data."""
_IMPORTANCE_VIEWS = 96


def write_pairs(config_path: Path, output_dir: Path | None = None, *, referenced: bool = True) -> PairFolder:
    """Write the pairs of a run with a scene file to `<output_dir>/<scene>/rate_<rate>`, unless they are up to date.

    Args:
        config_path: the `config.yml` beside a scene file, or that of a run that ended in one.
        output_dir: default: `pairs` in the run's `nifi` folder.
        referenced: also write each view corrected by reference residuals. Training views do not use their own photo.

    Raises:
        NifiError: if the run cannot be opened, or uses no scene file.
    """
    run = load_run(config_path)
    if run.scene_file is None:
        raise NifiError(f"{config_path} has no scene file: write one with ns-nifi-compress run {config_path}")
    root = (output_dir or run.folder / "nifi" / "pairs") / run.scene
    rate, data = run.scene_file.parent.name, run.scene_file.read_bytes()
    current = _fingerprint(run, referenced, data)
    if is_current(root / f"rate_{rate}", current):
        return PairFolder.open(root / f"rate_{rate}")
    return _write(run, root, rate, len(data), current, referenced)


def write_pruned_pairs(
    config_path: Path, levels: int, output_dir: Path, *, referenced: bool = True
) -> Iterator[PairFolder]:
    """Write `<output_dir>/<scene>/rate_pruned-<gaussians>` of a run's uncompressed splats, the coarsest level first.

    Each level removes the least important gaussians, without fine-tuning: see `pruned_counts`. Folders that are up to
    date are kept. `bytes` in the pairs is the size of the plain .ply.

    Raises:
        NifiError: if the run cannot be opened, or has no more gaussians than the coarsest level.
    """
    if levels < 1:
        raise NifiError(f"--prune-levels is {levels}, expected 1 or more")
    run = load_run(config_path)
    splats = run.uncompressed
    counts = pruned_counts(len(splats), levels)
    made_of = [getattr(splats, f.name).detach().float().cpu().numpy().tobytes() for f in fields(splats)]
    order = None
    for count in counts:
        root, rate = output_dir / run.scene, f"pruned-{count}"
        current = _fingerprint(run, referenced, *made_of, rate.encode())
        if is_current(root / f"rate_{rate}", current):
            yield PairFolder.open(root / f"rate_{rate}")
            continue
        if order is None:
            views = spaced_views(run.train_views, _IMPORTANCE_VIEWS)
            antialiased = run.model.config.rasterize_mode == "antialiased"
            importance = measure_importance(
                splats, views, background=run.model.background_color, antialiased=antialiased
            )
            order = importance.opacity_sensitivity.argsort(descending=True)
        pruned = splats[order[:count]]
        run.model.set_splats(pruned)
        yield _write(run, root, rate, pruned.ply_size, current, referenced)


def pruned_counts(count: int, levels: int) -> list[int]:
    """Return the number of gaussians at each of `levels` pruning levels: from `FEWEST`, increasing by equal factors.

    The level after the last would be the whole scene of `count` gaussians. Equal levels are merged. Similar to the
    levels of GoDe (Di Sario et al. 2025) and RAVE, and to the three of NiFi's training data.

    Raises:
        NifiError: if `count` is not above `FEWEST`.
    """
    if count <= FEWEST:
        raise NifiError(f"the run has {count:,} gaussians: --prune-levels needs more than {FEWEST:,}")
    counts = (round(FEWEST * (count / FEWEST) ** (level / levels)) for level in range(levels))
    return sorted({min(level, count - 1) for level in counts})


def _write(run: Run, root: Path, rate: str, size: int, made_of: str, referenced: bool) -> PairFolder:
    """Write pairs with renders of the model's current splats."""
    splats = run.model.splats
    what = {"bytes": size, "gaussians": len(splats), "fingerprint": made_of}
    writer = PairWriter(root / f"rate_{rate}", scene=run.scene, rate=rate, **what)
    restorer = run.model.view_restorer
    for split, views in (("train", run.train_views), ("test", run.eval_views)):
        for view in track(views, f"{run.scene} {rate}: {split} pairs", transient=True):
            assert view.image is not None
            rgb, depth = run.model.render_view(view, splats)
            request = restorer.request(view, rgb, depth, exclude=view.name)
            bank = restorer.reference_bank(request.snapshot)
            chosen = bank.choose(view, depth, exclude=(view.name,), occlusion=True)
            names = [run.train_views.names[index] for index in chosen]
            pictures = view.image, rgb, request.referenced if referenced else None
            writer.add("train" if split == "train" else "test", view.name, *pictures, attended_photos=names)
    return writer.finish()


def _fingerprint(run: Run, referenced: bool, *made_of: bytes) -> str:
    """Return a hash of everything that determines the pairs; `made_of` identifies the rendered splats."""
    model = run.model.config
    settings = (VERSION, referenced, model.num_reference_photos, model.rasterize_mode, model.background_color)
    names, files, cameras = [], [], []
    for views, dataset in (
        (run.train_views, run.pipeline.datamanager.train_dataset),
        (run.eval_views, run.pipeline.datamanager.eval_dataset),
    ):
        assert dataset is not None
        names.append(views.names)
        files += map(Path, dataset.image_filenames)  # pyright: ignore[reportAttributeAccessIssue]
        posed = dataset.cameras  # pyright: ignore[reportAttributeAccessIssue]
        tensors = (posed.camera_to_worlds, posed.fx, posed.fy, posed.width, posed.height)
        cameras += [tensor.to(torch.float32).cpu().numpy().tobytes() for tensor in tensors]
    return fingerprint(settings, names, *cameras, *made_of, files=files)
