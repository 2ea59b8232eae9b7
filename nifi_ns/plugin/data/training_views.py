"""The training views of a datamanager: all or some of the photos, and distilled views."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs

from nifi_ns.errors import NifiError
from nifi_ns.views import evenly_spaced


@dataclass
class TrainingViewsConfig:
    """Which photos are used for training."""

    max_train_views: int | None = None
    """Train on this many photos, evenly spaced in their order; None: all. Held-out photos do not change."""


class TrainingViews:
    """A mixin for datamanagers. List it before the datamanager's class among the bases."""

    config: Any
    """The datamanager's own config, which is also a `TrainingViewsConfig`."""
    train_dataparser_outputs: DataparserOutputs
    distilled_view: Callable[[int], tuple[Cameras, dict[str, Any]] | None] = staticmethod(lambda step: None)
    """Returns the restored view to train on at a step (see `Distillation.sample`), or None for a photo. Set by the
    pipeline."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        """Build the datamanager.

        Raises:
            NifiError: if there is no such capture.
        """
        if config.data is not None and not config.data.exists():
            raise NifiError(f"no capture at {config.data}")
        super().__init__(config, *args, **kwargs)  # pyright: ignore[reportCallIssue]

    def create_train_dataset(self) -> Any:
        """Build the dataset of `max_train_views` photos.

        Raises:
            NifiError: if `max_train_views` is below 1.
        """
        count, outputs = self.config.max_train_views, self.train_dataparser_outputs
        if count is not None:
            if count < 1:
                raise NifiError(f"max_train_views is {count}, expected 1 or more")
            self.train_dataparser_outputs = _evenly_spaced(outputs, count)
        return super().create_train_dataset()  # pyright: ignore[reportAttributeAccessIssue]


def _evenly_spaced(outputs: DataparserOutputs, count: int) -> DataparserOutputs:
    """Return the dataparser's outputs for `count` of its photos, evenly spaced from the first to the last."""
    chosen = evenly_spaced(count, len(outputs.image_filenames))
    outputs = copy.copy(outputs)
    outputs.cameras = outputs.cameras[torch.tensor(chosen)]
    outputs.image_filenames = [outputs.image_filenames[i] for i in chosen]
    if outputs.mask_filenames is not None:
        outputs.mask_filenames = [outputs.mask_filenames[i] for i in chosen]
    if outputs.metadata.get("depth_filenames") is not None:
        depths = outputs.metadata["depth_filenames"]
        outputs.metadata = outputs.metadata | {"depth_filenames": [depths[i] for i in chosen]}
    return outputs
