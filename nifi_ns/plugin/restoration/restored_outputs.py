"""Restored outputs for any nerfstudio model that renders colour and depth: a mixin and its part of the config."""

from abc import ABC
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from torch import Tensor

from nifi_ns.plugin.data.dataset_views import view_of
from nifi_ns.plugin.data.lazy_outputs import LazyOutputs
from nifi_ns.plugin.repairs.render_speeds import STOPWATCH
from nifi_ns.plugin.restoration.panel import Panel
from nifi_ns.plugin.restoration.restorable import RestorableModel
from nifi_ns.plugin.restoration.restoration_choice import RestorationChoice
from nifi_ns.plugin.restoration.view_restorer import Restored, ViewRequest, ViewRestorer, make_or_exit
from nifi_ns.plugin.restoration.viewer_worker import render_thread
from nifi_ns.views import View


@dataclass
class RestoredOutputsConfig:
    """How views are restored."""

    restorer: Path | None = None
    """Folder of a trained restorer; default: the run's `nifi/restorer`, which `ns-nifi-train` writes."""
    restore_rgb: bool = False
    """Restore `rgb` itself, for commands that cannot select another output."""
    num_reference_photos: int = 8
    """Number of the capture's photos that correct a view in `rgb_referenced`."""


@dataclass(frozen=True)
class RestoredPictures:
    """The restored outputs of one view. Each method returns a picture for the viewer or a command."""

    request: ViewRequest
    read: Callable[[str], Any]
    """Returns an attribute of the request by name; None while the viewer's worker is still computing it."""

    def referenced(self) -> Tensor:
        """Return the render corrected by reference residuals, [H, W, 3]; the plain render until that is ready."""
        picture: Tensor | None = self.read("referenced")
        return self.request.rgb if picture is None else picture

    def restored(self) -> Tensor:
        """Return the restored view, [H, W, 3]; the plain render until that is ready."""
        restored: Restored | None = self.read("restored")
        rgb = self.request.rgb
        return rgb if restored is None else self.request.resolved_choice.blend(rgb, *restored)

    def change(self) -> Tensor:
        """Return the mean absolute change of colour by restoration, [H, W, 1]."""
        return (self.restored() - self.request.rgb).abs().mean(dim=-1, keepdim=True)


class RestoredOutputs(RestorableModel, ABC):
    """Adds the outputs `rgb_referenced`, `rgb_restored` and `restoration_change` to a model, and a panel to the viewer.

    They are computed when they are read. In the viewer they equal `rgb` until a worker thread has computed them. List
    this class before the model's class among the bases.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.panel = Panel(self)
        self.view_restorer = ViewRestorer(self, check=self.panel.worker.check)

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Any]:
        """Return the model's outputs and the lazy ones for one camera, cropped to `obb_box`."""
        camera = camera.to(self.device)
        with STOPWATCH.time("rendering"):
            outputs = LazyOutputs(super().get_outputs_for_camera(camera, obb_box))
        view, rgb = view_of(camera), outputs["rgb"]
        extra = self.extra_outputs(view, obb_box)
        thread = render_thread()
        if thread is not None and thread.state != "high":  # the viewer's camera is moving
            outputs.update(dict.fromkeys(extra, rgb), restoration_change=torch.zeros_like(rgb[..., :1]))
            outputs.update(rgb_referenced=rgb, rgb_restored=rgb)
            return outputs
        outputs.update(extra)

        choice = None if thread is None else self.panel.choice
        depth = self.expected_depth(view, outputs)
        request = self.view_restorer.request(view, rgb, depth, choice=choice)
        if choice is None:
            pictures = RestoredPictures(request, _read_now(request))
            in_rgb = self.config.restore_rgb
        else:
            key = request.snapshot.key, _view_key(view, obb_box), choice.restorer, choice.use_photos
            pictures = RestoredPictures(request, self.panel.read_later(key, request))
            in_rgb = choice.in_rgb

        outputs["restoration_change"] = pictures.change  # not last: the viewer's split screen starts with the last one
        outputs["rgb_referenced"] = pictures.referenced
        outputs["rgb_restored"] = pictures.restored
        if in_rgb:
            outputs["rgb"] = lambda: outputs["rgb_restored"]
        return outputs

    def trained_choice(self, restorer: Path | None) -> RestorationChoice:
        """Return how a restorer was trained to be used.

        Raises:
            NifiError: if there is no such restorer.
        """
        return self.view_restorer.trained_choice(restorer)

    def get_image_metrics_and_images(
        self, outputs: dict[str, Any], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Return every available metric of the render, and of the referenced and restored views if there are any.

        Names are those of `nifi_ns.metrics`, with the prefixes `referenced_` and `restored_`. Evaluations during
        training skip the referenced views, because each needs renders at several photos.
        """
        from nifi_ns.metrics import compute

        photo = self.photo(outputs, batch)
        pictures = {"": outputs["rgb"]}
        if self.train_views is not None and not self._in_training:
            pictures["referenced_"] = outputs["rgb_referenced"]
        if self.restorer_folder is not None:
            pictures["restored_"] = outputs["rgb_restored"]
        measured = {prefix: compute(image, photo) for prefix, image in pictures.items()}
        metrics = {p + name: value for p, row in measured.items() for name, value in row.items() if value is not None}
        return metrics, {"img": torch.cat([photo, *pictures.values()], dim=1)}


def _read_now(request: ViewRequest) -> Callable[[str], Any]:
    """Return a function that computes and returns an attribute of `request`, for commands."""

    def read(name: str) -> Any:
        with STOPWATCH.time("restoring"):
            return make_or_exit(lambda: getattr(request, name))

    return read


def _view_key(view: View, crop: OrientedBox | None) -> Hashable:
    """Return a key that is equal for equal cameras and crops."""
    box = () if crop is None else (crop.R, crop.T, crop.S)
    return view.width, view.height, *(tuple(part.flatten().tolist()) for part in (view.viewmat, view.K, *box))
