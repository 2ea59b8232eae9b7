"""Splatfacto's datamanager, which also returns the model's render for each photo, and distilled views."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader

from nifi_ns.plugin.data.lazy_outputs import LazyOutputs
from nifi_ns.plugin.data.training_views import TrainingViews, TrainingViewsConfig


@dataclass
class NifiDataManagerConfig(TrainingViewsConfig, FullImageDatamanagerConfig):
    """The config of splatfacto's datamanager, which `ns-render dataset` requires."""

    _target: type = field(default_factory=lambda: NifiDataManager)


class NifiDataManager(TrainingViews, FullImageDatamanager[InputDataset]):
    """Returns pairs: `batch["image"]`, the photo, and `batch["render"]`, the model's render of its camera, [H, W, 3].

    The render is computed when it is read. Training never reads it, so it costs training nothing.
    """

    config: NifiDataManagerConfig
    renderer: Callable[[Cameras], Any] | None = None
    """Renders a camera to the model's outputs. Set by the pipeline, because datamanagers are built before models."""

    def _with_render(self, camera: Cameras, batch: dict[str, Any]) -> tuple[Cameras, LazyOutputs]:
        pair = LazyOutputs(batch)
        if self.renderer is not None:
            renderer = self.renderer
            pair["render"] = lambda: renderer(camera)["rgb"]
        return camera, pair

    def next_train(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """Return a training camera with its photo (or a distilled view in its place) and its render."""
        distilled = self.distilled_view(step)
        if distilled is not None:
            return self._with_render(*distilled)
        return self._with_render(*super().next_train(step))

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """Return an evaluation camera, its photo and its render."""
        return self._with_render(*super().next_eval_image(step))

    @property
    def fixed_indices_eval_dataloader(self) -> list[tuple[Cameras, dict[str, Any]]]:
        """Every evaluation camera, in order, with its photo and its render."""
        return [self._with_render(*pair) for pair in super().fixed_indices_eval_dataloader]

    @cached_property
    def eval_dataloader(self) -> FixedIndicesEvalDataloader:
        """Dataloader from which `ns-render spiral` takes its first camera."""
        return FixedIndicesEvalDataloader(input_dataset=self.eval_dataset, device=self.device)
