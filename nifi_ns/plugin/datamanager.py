"""Splatfacto's datamanager, which also emits what the model renders where a photo was taken, and repaired views."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader

from nifi_ns.errors import NifiError
from nifi_ns.plugin.outputs import LazyOutputs


@dataclass
class NifiDataManagerConfig(FullImageDatamanagerConfig):
    """Splatfacto's, which is what `ns-render dataset` insists on."""

    _target: type = field(default_factory=lambda: NifiDataManager)
    max_train_views: int | None = None
    """Train on this many of the photos, evenly spread over their order; None: on all. Held-out photos are the same."""

    def __post_init__(self) -> None:
        if self.max_train_views is not None and self.max_train_views < 1:
            raise NifiError(f"max_train_views is {self.max_train_views}, expected 1 or more")


class NifiDataManager(FullImageDatamanager[InputDataset]):
    """Emits pairs: `batch["image"]`, the photo, and `batch["render"]`, the model's [H, W, 3] view of the same camera.

    The render is made when it is read, so that training, which never reads it, pays nothing.
    """

    config: NifiDataManagerConfig
    renderer: Callable[[Cameras], Any] | None = None
    """What renders a camera to the model's outputs; bound by the pipeline, since datamanagers are built first."""
    repaired: Callable[[int], tuple[Cameras, dict[str, Any]] | None] | None = None
    """Says which repaired view to train on at a step, or None for a photo; bound by the pipeline."""

    def create_train_dataset(self) -> InputDataset:
        """Of as many photos as are to be trained on."""
        count, outputs = self.config.max_train_views, self.train_dataparser_outputs
        if count is not None:
            self.train_dataparser_outputs = _spread(outputs, min(count, len(outputs.image_filenames)))
        return super().create_train_dataset()

    def _with_render(self, camera: Cameras, batch: dict[str, Any]) -> tuple[Cameras, LazyOutputs]:
        pair = LazyOutputs(batch)
        if self.renderer is not None:
            renderer = self.renderer
            pair["render"] = lambda: renderer(camera)["rgb"]
        return camera, pair

    def next_train(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """A training camera, its photo and its render; or a repaired view in place of the photo."""
        repaired = None if self.repaired is None else self.repaired(step)
        if repaired is not None:
            return self._with_render(*repaired)
        return self._with_render(*super().next_train(step))

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """An evaluation camera, its photo and its render."""
        return self._with_render(*super().next_eval_image(step))

    @property
    def fixed_indices_eval_dataloader(self) -> list[tuple[Cameras, dict[str, Any]]]:
        """Every evaluation camera, in order, with its photo and its render."""
        return [self._with_render(*pair) for pair in super().fixed_indices_eval_dataloader]

    @cached_property
    def eval_dataloader(self) -> FixedIndicesEvalDataloader:
        """Where `ns-render spiral` takes its first camera from."""
        return FixedIndicesEvalDataloader(input_dataset=self.eval_dataset, device=self.device)


def _spread(outputs: DataparserOutputs, count: int) -> DataparserOutputs:
    """What a dataparser says of `count` of its photos, from the first to the last."""
    last = len(outputs.image_filenames) - 1
    chosen = [round(i * last / max(1, count - 1)) for i in range(count)]
    outputs = copy.copy(outputs)
    outputs.cameras = outputs.cameras[torch.tensor(chosen)]
    outputs.image_filenames = [outputs.image_filenames[i] for i in chosen]
    if outputs.mask_filenames is not None:
        outputs.mask_filenames = [outputs.mask_filenames[i] for i in chosen]
    if outputs.metadata.get("depth_filenames") is not None:
        depths = outputs.metadata["depth_filenames"]
        outputs.metadata = outputs.metadata | {"depth_filenames": [depths[i] for i in chosen]}
    return outputs
