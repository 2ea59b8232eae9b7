"""Distillation: restored views of new cameras become training views (Difix3D's progressive updates).

Wu et al. 2025, "Difix3D+", section 4.2: at certain steps, views between the photos are rendered and restored, and
training continues with them. Each time, their cameras are further from the photos. The teacher that restores them is a
restorer or, without a network, the reference residuals of the capture's photos.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import DataManager
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track

from nifi_ns.errors import NifiError, check_fields
from nifi_ns.novel_views import between, towards
from nifi_ns.plugin.data.dataset_views import camera_of, read_camera_path, view_of
from nifi_ns.plugin.data.training_views import TrainingViews
from nifi_ns.plugin.distill.generations import Generation, RestoredView
from nifi_ns.plugin.restoration.restored_outputs import RestoredOutputs
from nifi_ns.references import box_mean, hwc
from nifi_ns.views import View, spaced_views

_CHANGE_WINDOW = 9
"""Side in pixels of the squares over which a change is averaged. Single pixels would give speckled weights."""


@dataclass(frozen=True)
class DistillationConfig:
    """When training restores views, with which teacher, and their weight."""

    steps: tuple[int, ...] = ()
    """Training steps at which views are restored. They are restored once more when compression begins. Empty: no
    distillation."""
    views_per_step: int = 16
    """Largest number of views restored at each of `steps`."""
    share: float = 0.4
    """Share of iterations that train on a restored view."""
    weight: float = 1.0
    """Weight of a restored view in the loss, relative to a photo's; Difix3D's is about 0.3."""
    teacher: Literal["references", "restorer"] = "references"
    """Restore with reference residuals of the capture's photos, which need no training, or with the restorer."""
    restorer: Path | None = None
    """Folder or hub id of the restorer, such as nvidia/difix_ref."""
    target: Literal["neighbours", "held-out"] | Path = "neighbours"
    """Where cameras move, starting from the photos' cameras: half way to their neighbours, to the cameras of the
    held-out photos (but these photos are not used), or to a camera path saved by the viewer."""
    outward: float = 0.5
    """Share of the distance to the target that cameras move at each of `steps`."""
    max_change: float = 0.3
    """Mean absolute change of colour, in [0, 1], above which a restored pixel gets no weight."""

    def __post_init__(self) -> None:
        checks = {
            "steps": (
                all(step >= 1 for step in self.steps) and list(self.steps) == sorted(set(self.steps)),
                "increasing steps of 1 or more",
            ),
            "views_per_step": (self.views_per_step >= 1, "1 or more"),
            "share": (0 < self.share < 1, "between 0 and 1"),
            "weight": (self.weight > 0, "more than 0"),
            "outward": (0 < self.outward <= 1, "more than 0 and at most 1"),
            "max_change": (self.max_change > 0, "more than 0"),
            "restorer": (
                (self.teacher == "restorer") == (self.restorer is not None),
                "a path if teacher is restorer, else None",
            ),
        }
        check_fields(self, "distill", checks)


OFF = DistillationConfig()
"""No distillation."""


class Distillation:
    """Restores views between training iterations, and passes them to the datamanager.

    The current generation of views is the last one due. It is stored in the run's folder, for resumed runs. Once
    compression has begun, views of the uncompressed splats are restored. Each of their pixels is better than the render
    of the few remaining gaussians, so no weight is reduced for low confidence.
    """

    def __init__(
        self,
        config: DistillationConfig,
        model: RestoredOutputs,
        held_out: Cameras,
        trainer: Trainer,
        compression_step: int | None = None,
    ) -> None:
        """
        Args:
            config: the settings.
            model: the model in training, with `train_views`.
            held_out: cameras of the held-out photos.
            trainer: the run's trainer.
            compression_step: the first step of compression; None without compression.

        Raises:
            NifiError: if the restorer or the target does not exist, or there is only one camera and no target.
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
            raise NifiError("distill: a single training view has no neighbours: set distill.target")
        if config.restorer is not None:
            model.trained_choice(config.restorer)  # fail now instead of at the first restored view

    def callbacks(self) -> list[TrainingCallback]:
        """Return the callbacks that the trainer calls before iterations, after the model's own callbacks."""
        return [TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self._before_step)]

    def sample(self, step: int) -> tuple[Cameras, dict[str, Any]] | None:
        """Return a restored view at a share of the steps, and None at the others.

        The choice depends only on the step, so that resuming a run does not change it.

        Returns:
            The camera, and a batch: `image` [H, W, 3] uint8, `mask` [H, W, 1] in [0, 1], and `loss_weight`.
        """
        chance = random.Random(f"distilled {step}")
        if self._generation is None or chance.random() >= self.config.share:
            return None
        restored = chance.choice(self._generation.views)
        device = self._model.device
        # no cam_idx: parameters learnt per photo do not apply to this camera
        camera = camera_of(restored.view).to(device)
        weights = restored.weights.to(device).float() / 255
        return camera, {"image": restored.fixed.to(device), "mask": weights, "loss_weight": self.config.weight}

    def _before_step(self, step: int) -> None:
        past = [due for due in self._due if due <= step]
        if not past or (self._generation is not None and self._generation.step == past[-1]):
            return
        found = None if past[-1] == step else Generation.find(self._folders, past[-1])
        self._generation = found or self._restore(past[-1], part=min(1.0, self.config.outward * len(past)))

    def _restore(self, step: int, part: float) -> Generation:
        count = self.config.views_per_step
        if self._targets is None:
            views = between(self._cameras, count, part)
        else:
            views = towards(spaced_views(self._targets, count), self._cameras, part)
        compressing = self._compression_step is not None and step >= self._compression_step
        with _evaluating(self._model), torch.no_grad():
            named = [replace(view, name=f"{i:03d}") for i, view in enumerate(views)]
            restored = [self._restored(view, compressing) for view in track(named, "restoring views", transient=True)]
        self._model.view_restorer.clear_reference_bank()
        generation = Generation(step, restored)
        folder = generation.save(self._folders[0])
        weight = sum(float(view.weights.float().mean()) for view in restored) / len(restored) / 255
        CONSOLE.log(f"{len(restored)} views restored, mean weight {weight:.0%}: {folder}")
        return generation

    def _restored(self, view: View, compressing: bool) -> RestoredView:
        model, snapshot = self._model, self._model.snapshot(uncompressed=True)
        view = view.to(model.device)
        rgb, depth = snapshot.draw(view)
        residuals = self.config.teacher == "references"
        choice = None if residuals else model.trained_choice(self.config.restorer)
        request = model.view_restorer.request(view, rgb, depth, snapshot=snapshot, choice=choice)
        fixed, weights = request.residuals if residuals else (request.picture, torch.ones_like(depth))
        weights = torch.ones_like(weights) if compressing else weights
        change = (fixed - rgb).abs().mean(dim=-1)[None, None]
        weights = weights * (hwc(box_mean(change, _CHANGE_WINDOW)) < self.config.max_change)
        nearest = request.photos(1)
        return RestoredView.of(view, rgb, nearest[0] if nearest else rgb, fixed, weights)


def distillation_callbacks(
    config: DistillationConfig,
    model: RestoredOutputs,
    manager: DataManager,
    trainer: Trainer | None,
    compression_step: int | None = None,
) -> list[TrainingCallback]:
    """Let `manager` return restored views according to `config`, and return the callbacks for the trainer.

    Returns no callbacks without a trainer, with distillation off, or with another project's datamanager: a run of stock
    splatfacto keeps its own when it is opened with a compressed config.

    Raises:
        NifiError: like `Distillation`.
    """
    if not config.steps or trainer is None or not isinstance(manager, TrainingViews):
        return []
    assert manager.eval_dataset is not None
    distillation = Distillation(config, model, manager.eval_dataset.cameras, trainer, compression_step)
    manager.distilled_view = distillation.sample
    return distillation.callbacks()


def _targets(config: DistillationConfig, held_out: Cameras) -> list[View] | None:
    """Return the cameras to move towards; None to move towards neighbours."""
    if config.target == "neighbours":
        return None
    if config.target != "held-out":
        return read_camera_path(Path(config.target))
    if len(held_out) == 0:
        raise NifiError("distill: target is held-out, but no photos are held out: set another distill.target")
    return [view_of(held_out[i]) for i in range(len(held_out))]


def _resumed_from(trainer: Trainer) -> list[Path]:
    """Return the folder of the run whose checkpoint was loaded; empty if none was."""
    checkpoint, folder = trainer.config.load_checkpoint, trainer.config.load_dir
    folder = checkpoint.parent if checkpoint is not None else folder
    return [] if folder is None else [folder.parent]


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode within the block, so that its background is not random."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
