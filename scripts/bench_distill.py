"""Measure distillation of restored views into the splats: the rows of Difix3D's ablation on held-out photos.

    python scripts/bench_distill.py --data fox --views 8 --sizes 25KB 50KB

Trains on a few of a capture's views: *plain*, with *one* restoration during training, and *progressive*, with all
restorations of `--distill.steps`. Plain and progressive are also measured with restoration at render time by the same
teacher (*post-fix*). All have the same number of iterations: those on restored views replace iterations on photos. Then
each is compressed to the sizes, in a stage that continues to train on the restored views. `--dropout` is used with
restorations, and adds a row without them.

The teacher is the capture's photos (`references`). `--restorer` adds rows with a restorer as the teacher. Trained runs
are kept in `--work` and not trained again.
"""

import hashlib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nerfstudio.configs.method_configs import all_methods  # first: importing the plugin first would be circular
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.scripts.train import train_loop
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nifi_ns import metrics
from nifi_ns.commands import run
from nifi_ns.compress import target_bytes
from nifi_ns.errors import NifiError
from nifi_ns.files import format_size
from nifi_ns.metrics import LOWER_IS_BETTER
from nifi_ns.plugin.distill.distillation import OFF, DistillationConfig
from nifi_ns.plugin.runs import Run, load_run
from nifi_ns.plugin.splat.compression_stage import CompressionStageConfig
from nifi_ns.plugin.splat.model import NifiSplatModelConfig
from nifi_ns.plugin.splat.pipeline import NifiPipelineConfig
from nifi_ns.results import Row, Variant, save
from nifi_ns.views import View

_SHOWN = ("psnr", "ms_ssim", "haarpsi", "gmsd", "lpips", "dists")
_REPAIRED_AT = (0.7, 0.8, 0.9)  # fractions of the steps, if --distill.steps is not given


@dataclass
class BenchDistill:
    """Compare restoration during training with restoration at render time."""

    data: Path
    """A capture, as for ns-train --data."""
    views: int = 8
    """Number of views to train on."""
    sizes: tuple[str, ...] = ("25KB", "50KB")
    """Sizes to compress to. If empty, the splats are not compressed."""
    method: Literal["nifi-splat-lite", "nifi-splat"] = "nifi-splat-lite"
    """Method to train."""
    steps: int = 2000
    """Training steps before compression. All schedules are scaled to them."""
    compression_steps: int = 700
    """Steps of the compression stage."""
    restorer: Path | None = None
    """A restorer's folder or hub id, the teacher in additional rows."""
    dropout: float = 0.0
    """Dropout of the model in every training except the plain one."""
    distill: DistillationConfig = field(default_factory=DistillationConfig)
    """How views are restored and weighted. `steps` are those of the progressive rows."""
    work: Path = Path("outputs/bench_distill")
    """Folder of the trained runs."""
    output: Path = Path("results/bench_distill.json")
    """JSON file for the results, with a CSV beside it."""

    def main(self) -> None:
        """Train, measure, print a table and write the results."""
        if not self.data.exists():
            raise NifiError(f"no capture at {self.data}")
        if self.steps < 10 or self.compression_steps < 1:
            raise NifiError(f"{self.steps} and {self.compression_steps} steps: expected 10 or more, and 1 or more")
        if self.distill.teacher == "restorer":
            raise NifiError("name the restorer as --restorer: the photos are the teacher in any case")
        for size in self.sizes:
            target_bytes(size)
        at = self.distill.steps or tuple(round(part * self.steps) for part in _REPAIRED_AT)
        progressive = replace(self.distill, steps=at)
        how = {"method": self.method, "dropout": self.dropout}
        how |= {"steps": self.steps, "compression_steps": self.compression_steps}
        rows: list[Row] = []
        for more in self._measured(progressive):
            rows += more
            save(self.output, rows, **how)
        Console().print(_table([row.flat() for row in rows]))
        print(f"written to {self.output} and .csv")

    def _measured(self, progressive: DistillationConfig) -> Iterator[list[Row]]:
        teachers = [progressive]
        if self.restorer is not None:
            teachers.append(replace(progressive, teacher="restorer", restorer=self.restorer))
        trainings: list[tuple[str, DistillationConfig, list[DistillationConfig]]] = [("plain", OFF, teachers)]
        if self.dropout:
            trainings.append(("dropout", OFF, teachers))
        for fix in teachers:
            trainings += [("one", replace(fix, steps=fix.steps[:1]), []), ("progressive", fix, [fix])]
        for name, fix, post in trainings:
            teacher = fix.teacher if fix.steps else None
            uncompressed = self._trained(name, fix, 0.0 if name == "plain" else self.dropout)
            yield self._rows(uncompressed, name, teacher, post)
            for size in self.sizes:
                yield self._rows(self._compressed(uncompressed, size), name, teacher, post)

    def _trained(self, name: str, fix: DistillationConfig, dropout: float) -> Path:
        """Return the config.yml of a run before compression."""
        config = deepcopy(all_methods[self.method])
        pipeline = config.pipeline
        assert isinstance(pipeline, NifiPipelineConfig)
        model, datamanager = pipeline.model, pipeline.datamanager
        assert isinstance(model, NifiSplatModelConfig)
        scale = self.steps / model.compression.start_step
        for schedule in ("warmup_length", "sh_degree_interval", "stop_split_at", "resolution_schedule"):
            setattr(model, schedule, max(1, round(scale * getattr(model, schedule))))
        for optimizer in config.optimizers.values():
            if optimizer["scheduler"] is not None:
                optimizer["scheduler"].max_steps = self.steps
        model.compression, model.dropout = replace(model.compression, enabled=False), dropout
        config.data = datamanager.data = self.data
        datamanager.max_train_views, pipeline.distill = self.views, fix
        config.max_num_iterations = self.steps
        made_of = repr((self.data.resolve(), self.views, self.steps, dropout, fix))
        config.output_dir, config.experiment_name = self.work, self.data.resolve().name
        config.timestamp = f"{name}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
        return _train(config)

    def _compressed(self, uncompressed: Path, size: str) -> Path:
        """Return the config.yml of a run that continues from `uncompressed` and ends with a scene file."""
        config = load_run(uncompressed).config
        config.load_dir = uncompressed.parent / config.relative_model_dir
        config.timestamp = f"{uncompressed.parent.name}-{size}-{self.compression_steps}"
        config.max_num_iterations = self.compression_steps
        assert isinstance(config.pipeline.model, NifiSplatModelConfig)
        config.pipeline.model.compression = CompressionStageConfig(
            start_step=self.steps, steps=self.compression_steps, target_size=size
        )
        return _train(config)

    def _rows(self, path: Path, training: str, teacher: str | None, post: Sequence[DistillationConfig]) -> list[Row]:
        """Return the row of a run on held-out views, rendered directly or restored at render time."""
        opened = load_run(path)
        file, splats = opened.scene_file, opened.model.splats
        size = splats.ply_size if file is None else file.stat().st_size
        measured: dict[str | None, list[dict[str, float | None]]] = {}
        for view in opened.eval_views:
            rgb, depth = opened.model.render_view(view, splats)
            shown = {None: rgb} | {fix.teacher: _post_fixed(opened, view, rgb, depth, fix) for fix in post}
            assert view.image is not None
            for how, picture in shown.items():
                measured.setdefault(how, []).append(metrics.compute(picture, view.image))
        unfixed: Variant = "uncompressed" if file is None else "compressed"
        variants: dict[str | None, Variant] = {None: unfixed, "references": "referenced", "restorer": "restored"}
        more = {"training": training, "teacher": teacher, "views": len(opened.train_views)}
        made_of = {"bytes": size, "gaussians": len(splats), "rate": opened.rate}
        return [
            Row(opened.scene, variants[how], metrics=metrics.mean(values), **made_of, more={**more, "post_fix": how})
            for how, values in measured.items()
        ]


def _train(config: TrainerConfig) -> Path:
    """Train unless already done, and return the run's config.yml."""
    path = config.get_base_dir() / "config.yml"
    if any(config.get_checkpoint_dir().glob("step-*.ckpt")):
        return path
    config.vis, config.logging.local_writer.enable = "tensorboard", False
    config.steps_per_save = 10**9  # once, at the end: a checkpoint means that the training is done
    # held-out photos are measured at the end only
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 10**9
    config.save_config()
    train_loop(0, 1, config)
    return path


def _post_fixed(opened: Run, view: View, rgb: Tensor, depth: Tensor, fix: DistillationConfig) -> Tensor:
    """Return a view [H, W, 3] restored by the teacher at render time."""
    model = opened.model
    choice = None if fix.teacher == "references" else model.trained_choice(fix.restorer)
    request = model.view_restorer.request(view, rgb, depth, choice=choice)
    return request.referenced if choice is None else request.picture


def _table(rows: list[dict[str, Any]]) -> Table:
    """Return the rows by size. The first row of each is the baseline."""
    shown = [name for name in _SHOWN if any(r[name] is not None for r in rows)]
    table = Table(title="held-out photos, mean", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("training", "teacher", "post-fix"):
        table.add_column(name, no_wrap=True)
    for name in ("size", *(f"{name} {'↓' if name in LOWER_IS_BETTER else '↑'}" for name in shown)):
        table.add_column(name, justify="right", no_wrap=True)
    for rate in dict.fromkeys(r["rate"] for r in rows):
        for r in (r for r in rows if r["rate"] == rate):
            values = (f"{r[name]:.2f}" if name == "psnr" else f"{r[name]:.4f}" for name in shown)
            table.add_row(r["training"], r["teacher"] or "", r["post_fix"] or "", format_size(r["bytes"]), *values)
        table.add_section()
    return table


if __name__ == "__main__":
    run(BenchDistill)
