"""Pairs of a run: every photo with what its scene file renders there, as the folders restorers are trained on."""

import hashlib
from pathlib import Path

import torch
from rich.progress import track

from nifi_ns.errors import NifiError
from nifi_ns.plugin.runs import Run, load_run
from nifi_ns.restore.pairs import PairFolder, PairWriter, is_current

VERSION = 2
"""Counted up whenever the same scene file would give other pictures, so that cached pairs are made again."""


def write_pairs(config_path: Path, output_dir: Path | None = None, *, referenced: bool = True) -> PairFolder:
    """Write the pairs of a run with a scene file to `<output_dir>/<scene>/rate_<rate>`, unless they are there already.

    Args:
        config_path: the `config.yml` beside a scene file, or that of a run that ended in one.
        output_dir: `pairs` in the run's `nifi` folder by default.
        referenced: also write each view restored by reference photos; a training view never by its own photo.

    Raises:
        NifiError: if the run cannot be opened, or shows no scene file.
    """
    run = load_run(config_path)
    if run.scene_file is None:
        raise NifiError(f"{config_path} shows no scene file: run ns-nifi-compress --load-config {config_path} first")
    rate = run.scene_file.parent.name
    root = (output_dir or run.folder / "nifi" / "pairs") / run.scene / f"rate_{rate}"
    fingerprint = _fingerprint(run, referenced)
    if is_current(root, fingerprint):
        return PairFolder.open(root)
    size, count = run.scene_file.stat().st_size, len(run.model.splats)
    writer = PairWriter(root, scene=run.scene, rate=rate, bytes=size, gaussians=count, fingerprint=fingerprint)
    splats = run.model.splats
    for split, views in (("train", run.train_views), ("test", run.eval_views)):
        for view in track(views, f"{run.scene} {rate}: {split} pairs", transient=True):
            assert view.image is not None
            rgb, depth = run.model.render_view(view, splats)
            repaired = run.model.reference(view, rgb, depth, exclude=view.name) if referenced else None
            writer.add("train" if split == "train" else "test", view.name, view.image, rgb, repaired)
    return writer.finish()


def _fingerprint(run: Run, referenced: bool) -> str:
    """A hash of all that decides what the pairs look like."""
    assert run.scene_file is not None
    digest = hashlib.sha256(run.scene_file.read_bytes())
    model = run.model.config
    settings = (VERSION, referenced, model.num_references, model.rasterize_mode, model.background_color)
    digest.update(repr(settings).encode())
    for views, dataset in (
        (run.train_views, run.pipeline.datamanager.train_dataset),
        (run.eval_views, run.pipeline.datamanager.eval_dataset),
    ):
        assert dataset is not None
        for name, file in zip(views.names, dataset.image_filenames, strict=True):  # pyright: ignore
            digest.update(f"{name} {Path(file).stat().st_size} {Path(file).stat().st_mtime_ns}".encode())
        cameras = dataset.cameras  # pyright: ignore[reportAttributeAccessIssue]
        for tensor in (cameras.camera_to_worlds, cameras.fx, cameras.fy, cameras.width, cameras.height):
            digest.update(tensor.to(torch.float32).cpu().numpy().tobytes())
    return digest.hexdigest()
