"""Repairs that go back into the splats: views of new cameras, repaired, become training views (Difix3D's loop).

Wu et al. 2025, "Difix3D+", section 4.2: every so many steps, views between the photos are rendered, repaired, and
trained on from then on; the repaired cameras move further from the photos each time. What repairs them is a restorer
or, without any network, the residuals of the capture's photos (`restore.references`).
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import DataManager
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track

from nifi_ns.compress import spread
from nifi_ns.errors import NifiError
from nifi_ns.novel_views import between, towards
from nifi_ns.plugin.dataset_views import camera_of, read_camera_path, view_of
from nifi_ns.plugin.generations import Generation, Repair
from nifi_ns.plugin.restored_outputs import RestoredViews
from nifi_ns.plugin.training_views import TrainingViews
from nifi_ns.views import View

_TOGETHER = 9
"""Side in pixels of the squares whose change is judged together: a decision for each pixel alone speckles."""


@dataclass(frozen=True)
class DistillationConfig:
    """When views are repaired in training, by what, and how much they count."""

    steps: tuple[int, ...] = ()
    """Training steps at which views are repaired, each time anew, and once more when compression begins; none: repairs
    do not go into the splats."""
    views_per_step: int = 16
    """Most views that are repaired at each of them."""
    share: float = 0.4
    """Part of the iterations that look at a repaired view."""
    weight: float = 1.0
    """Weight of a repaired view in the loss, against a photo's; Difix3D takes about 0.3."""
    teacher: Literal["references", "restorer"] = "references"
    """What repairs: the residuals of the capture's photos, which needs no training, or the restorer."""
    restorer: Path | None = None
    """Folder or hub id of the restorer, such as nvidia/difix_ref."""
    target: Literal["neighbours", "held-out"] | Path = "neighbours"
    """Where cameras move to from where photos were taken: half way to their neighbours, to where the held-out photos
    were taken (which are not looked at), or to the cameras of a path that the viewer has saved."""
    outward: float = 0.5
    """Part of the way to the target that cameras move further at each of `steps`."""
    max_change: float = 0.3
    """Mean absolute change of colours, in [0, 1], from which on a repair is not believed."""

    def __post_init__(self) -> None:
        checks = {
            "steps": (
                all(step >= 1 for step in self.steps) and list(self.steps) == sorted(set(self.steps)),
                "steps of 1 or more, in order",
            ),
            "views_per_step": (self.views_per_step >= 1, "1 or more"),
            "share": (0 < self.share < 1, "between 0 and 1"),
            "weight": (self.weight > 0, "more than 0"),
            "outward": (0 < self.outward <= 1, "more than 0, and 1 at most"),
            "max_change": (self.max_change > 0, "more than 0"),
            "restorer": (
                (self.teacher == "restorer") == (self.restorer is not None),
                "one if, and only if, it is the teacher",
            ),
        }
        for name, (right, wanted) in checks.items():
            if not right:
                raise NifiError(f"fix: {name} is {getattr(self, name)}, expected {wanted}")


OFF = DistillationConfig()
"""Training as without this."""


class Distillation:
    """Repairs views between iterations of training, and hands them to the datamanager.

    The generation of views at hand is the last that was due; it is in the run's folder, where a run that is resumed
    finds it. Once compression has begun, what is repaired are views of the uncompressed splats: all of such a view is
    better than what the few gaussians that are left show, so all of it counts.
    """

    def __init__(
        self,
        config: DistillationConfig,
        model: RestoredViews,
        held_out: Cameras,
        trainer: Trainer,
        compression_step: int | None = None,
    ) -> None:
        """
        Args:
            config: see there.
            model: what is trained; its `train_views` are the capture's photos.
            held_out: the cameras of the held-out photos.
            trainer: whose run it is.
            compression_step: the step before which compression begins, if it does.

        Raises:
            NifiError: if there is no restorer or target as the config names it, or no camera between two others.
        """
        assert model.train_views is not None
        self.config = config
        self._model = model
        self._compression_step = compression_step
        self._due = sorted({*config.steps} if compression_step is None else {*config.steps, compression_step})
        self._cameras = [replace(view, image=None) for view in model.train_views]
        self._targets = _targets(config, held_out)
        self._folders = [trainer.base_dir, *_resumed_from(trainer)]
        self._generation: Generation | None = None
        if len(self._cameras) < 2 and self._targets is None:
            raise NifiError("fix: there is one training view, and no camera between: name a target")
        if config.restorer is not None:
            model.restoration_by(config.restorer)  # says what is wrong with it now

    def callbacks(self) -> list[TrainingCallback]:
        """What the trainer calls before its iterations, after the model's own."""
        return [TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self._before_step)]

    def sample(self, step: int) -> tuple[Cameras, dict[str, Any]] | None:
        """For `share` of the steps a repaired view: its camera, and as batch the picture, its weights and the view's.

        The same step always draws the same, so that a run that is resumed goes on as it would have.
        """
        chance = random.Random(f"repaired {step}")
        if self._generation is None or chance.random() >= self.config.share:
            return None
        repair = chance.choice(self._generation.repairs)
        device = self._model.device
        # without a cam_idx, since what is learnt for each photo's camera is not for this one
        camera = camera_of(repair.view).to(device)
        weights = repair.weights.to(device).float() / 255
        return camera, {"image": repair.fixed.to(device), "mask": weights, "loss_weight": self.config.weight}

    def _before_step(self, step: int) -> None:
        past = [due for due in self._due if due <= step]
        if not past or (self._generation is not None and self._generation.step == past[-1]):
            return
        found = None if past[-1] == step else Generation.find(self._folders, past[-1])
        self._generation = found or self._repair(past[-1], part=min(1.0, self.config.outward * len(past)))

    def _repair(self, step: int, part: float) -> Generation:
        count = self.config.views_per_step
        if self._targets is None:
            views = between(self._cameras, count, part)
        else:
            views = towards(spread(self._targets, count), self._cameras, part)
        compressing = self._compression_step is not None and step >= self._compression_step
        with _evaluating(self._model), torch.no_grad():
            named = [replace(view, name=f"{i:03d}") for i, view in enumerate(views)]
            repairs = [self._repaired(view, compressing) for view in track(named, "repairing views", transient=True)]
        self._model.forget_references()
        generation = Generation(step, repairs)
        folder = generation.save(self._folders[0])
        believed = sum(float(repair.weights.float().mean()) for repair in repairs) / len(repairs) / 255
        CONSOLE.log(f"{len(repairs)} views repaired, {believed:.0%} of them believed: {folder}")
        return generation

    def _repaired(self, view: View, compressing: bool) -> Repair:
        from nifi_ns.references import box_mean, hwc

        model, shown = self._model, self._model.shown(uncompressed=True)
        view = view.to(model.device)
        rgb, depth = shown.draw(view)
        if self.config.teacher == "references":
            fixed, weights = model.references(shown).restore(view, rgb, depth)
        else:
            how = model.restoration_by(self.config.restorer)
            referenced = partial(model.reference, view, rgb, depth, shown=shown)
            photos = partial(model.photos, view, depth, shown=shown)
            fixed = how.shown(rgb, *model.restoration(rgb, referenced, photos, how))
            weights = torch.ones_like(depth)
        weights = torch.ones_like(weights) if compressing else weights
        change = (fixed - rgb).abs().mean(dim=-1)[None, None]
        weights = weights * (hwc(box_mean(change, _TOGETHER)) < self.config.max_change)
        nearest = model.photos(view, depth, 1, shown)
        return Repair.of(view, rgb, nearest[0] if nearest else rgb, fixed, weights)


def repairing(
    config: DistillationConfig,
    model: RestoredViews,
    manager: DataManager,
    trainer: Trainer | None,
    compression_step: int | None = None,
) -> list[TrainingCallback]:
    """Have `manager` train on repaired views as `config` says; what the trainer is to call for it.

    Nothing where no training goes on, repairs are off, or the datamanager is not this project's: a run of stock
    splatfacto, opened by its compressed config, keeps its own.

    Raises:
        NifiError: as `Distillation`.
    """
    if not config.steps or trainer is None or not isinstance(manager, TrainingViews):
        return []
    assert manager.eval_dataset is not None
    fix = Distillation(config, model, manager.eval_dataset.cameras, trainer, compression_step)
    manager.repaired = fix.sample
    return fix.callbacks()


def _targets(config: DistillationConfig, held_out: Cameras) -> list[View] | None:
    """The cameras that the repaired ones move towards; None for their neighbours."""
    if config.target == "neighbours":
        return None
    if config.target != "held-out":
        return read_camera_path(Path(config.target))
    if len(held_out) == 0:
        raise NifiError("fix: no photos are held out, to whose cameras others could move: name another target")
    return [view_of(held_out[i]) for i in range(len(held_out))]


def _resumed_from(trainer: Trainer) -> list[Path]:
    """The folder of the run whose checkpoint was loaded, if one was."""
    checkpoint, folder = trainer.config.load_checkpoint, trainer.config.load_dir
    folder = checkpoint.parent if checkpoint is not None else folder
    return [] if folder is None else [folder.parent]


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Within the block `model` is not in training mode: its background is not random."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
