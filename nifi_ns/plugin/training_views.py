"""What a datamanager trains on: so many of the photos, and repaired views in between."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs

from nifi_ns.errors import NifiError


@dataclass
class TrainingViewsConfig:
    """Which photos are trained on."""

    max_train_views: int | None = None
    """Train on this many of the photos, evenly spread over their order; None: on all. Held-out photos are the same."""


class TrainingViews:
    """Part of a datamanager. Put it before the datamanager's class among the bases."""

    config: Any
    """The datamanager's own, and a `TrainingViewsConfig`."""
    train_dataparser_outputs: DataparserOutputs
    repaired: Callable[[int], tuple[Cameras, dict[str, Any]] | None] | None = None
    """Says which repaired view to train on at a step, or None for a photo: its camera, and as batch the picture
    [H, W, 3] uint8, its weights in [0, 1] and the view's. Bound by the pipeline."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        """As the datamanager's.

        Raises:
            NifiError: if there is no such capture.
        """
        if config.data is not None and not config.data.exists():
            raise NifiError(f"no capture at {config.data}")
        super().__init__(config, *args, **kwargs)  # pyright: ignore[reportCallIssue]

    def create_train_dataset(self) -> Any:
        """Of as many photos as are to be trained on.

        Raises:
            NifiError: if that is none.
        """
        count, outputs = self.config.max_train_views, self.train_dataparser_outputs
        if count is not None:
            if count < 1:
                raise NifiError(f"max_train_views is {count}, expected 1 or more")
            self.train_dataparser_outputs = _spread(outputs, min(count, len(outputs.image_filenames)))
        return super().create_train_dataset()  # pyright: ignore[reportAttributeAccessIssue]

    def repaired_view(self, step: int) -> tuple[Cameras, dict[str, Any]] | None:
        """The repaired view to train on at a step, or None for a photo."""
        return None if self.repaired is None else self.repaired(step)


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
