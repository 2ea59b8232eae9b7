"""Restored views of any nerfstudio model that draws colour and depth: a mixin, and its part of the config."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.models.base_model import Model
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from nifi_ns.errors import NifiError
from nifi_ns.plugin.outputs import LazyOutputs
from nifi_ns.plugin.views import view_of
from nifi_ns.views import View

if TYPE_CHECKING:
    from nifi_ns.restore import Restorer
    from nifi_ns.restore.references import ReferenceBank


@dataclass
class RestoredViewsConfig:
    """How views are restored."""

    restorer: Path | None = None
    """Folder of a trained restorer; by default the run's `nifi/restorer`, where `ns-nifi-train` puts it."""
    restore_rgb: bool = False
    """Whether `rgb` itself is restored, for commands that know no other output name."""
    num_references: int = 8
    """How many of the capture's photos guide `rgb_referenced`."""


class RestoredViews(Model, ABC):
    """Gives a model the outputs `rgb_referenced`, `rgb_restored` and `restoration_change`.

    The first is guided by the capture's photos, the second by the restorer, the third ([H, W, 1]) the mean absolute
    change of the restorer. They are computed when read. Put it before the model's class among the bases.
    """

    config: Any
    """The model's own, and a `RestoredViewsConfig`."""
    train_views: Sequence[View] | None = None
    """The capture's photos, bound by the pipeline; without them there is no `rgb_referenced`."""
    _bank: "ReferenceBank | None" = None
    _bank_step = -1
    _complained = False
    _in_training = False

    @abstractmethod
    def draw(self, view: View) -> tuple[Tensor, Tensor]:
        """What the model shows from a view: [H, W, 3] in [0, 1], and expected depth [H, W, 1]."""

    def more_outputs(self, view: View, obb_box: OrientedBox | None) -> dict[str, Callable[[], Tensor]]:
        """Pictures [H, W, 3] that the model can also draw of a view; `rgb` stands for them while the camera moves."""
        return {}

    @abstractmethod
    def photo(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        """[H, W, 3]: the photo in a batch, of the size and over the background of the outputs."""

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """The model's own; remembers that this process trains."""
        self._in_training = True
        return super().get_training_callbacks(training_callback_attributes)

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Any]:
        """The model's outputs and the lazy ones (see the class), of one camera, cropped to `obb_box`."""
        camera = camera.to(self.device)
        outputs = LazyOutputs(super().get_outputs_for_camera(camera, obb_box))
        view, rgb = view_of(camera), outputs["rgb"]
        more = self.more_outputs(view, obb_box)
        if _moving():
            outputs.update(dict.fromkeys(more, rgb), restoration_change=torch.zeros_like(rgb[..., :1]))
            outputs.update(rgb_referenced=rgb, rgb_restored=rgb)
            return outputs
        outputs.update(more)
        referenced = lambda: self.reference(view, rgb, outputs["depth"])  # noqa: E731
        restored = lambda: self.restore(rgb, lambda: outputs["rgb_referenced"])  # noqa: E731
        # the viewer's split screen starts with the last
        outputs["restoration_change"] = lambda: (outputs["rgb_restored"] - rgb).abs().mean(dim=-1, keepdim=True)
        outputs["rgb_referenced"] = lambda: self._or_rgb(rgb, referenced)
        outputs["rgb_restored"] = lambda: self._or_rgb(rgb, restored)
        if self.config.restore_rgb:
            outputs["rgb"] = lambda: outputs["rgb_restored"]
        return outputs

    @torch.no_grad()
    def reference(self, view: View, rgb: Tensor, depth: Tensor, exclude: str | None = None) -> Tensor:
        """[H, W, 3]: `rgb` corrected by what the capture's photos show where the model puts them.

        `exclude` names a photo that may not be used: the one of the view itself, when training pairs are made.
        """
        from nifi_ns.restore.references import ReferenceBank, ReferenceSettings

        if self.train_views is None:
            raise NifiError("rgb_referenced needs the capture's photos, and this pipeline has none")
        if self._bank is None or self._bank_step != self.step:
            settings = ReferenceSettings(count=self.config.num_references)
            self._bank, self._bank_step = ReferenceBank(self.train_views, self.draw, settings=settings), self.step
        return self._bank.restore(view, rgb, depth, exclude=() if exclude is None else (exclude,))[0]

    def forget_references(self) -> None:
        """Draw the photos' views anew when they are next needed: the model shows something else now."""
        self._bank = None

    @property
    def restorer_folder(self) -> Path | None:
        """Where the restorer is."""
        return self.config.restorer

    @cached_property
    def restorer(self) -> "Restorer":
        """The restorer, loaded when first used; a plain object, so that no checkpoint swallows it.

        A cached property is also the one kind of attribute that the viewer does not read when it looks for elements.

        Raises:
            NifiError: if there is none.
        """
        from nifi_ns.restore import Restorer

        folder = self.restorer_folder
        if folder is None:
            raise NifiError("no restorer: train one with ns-nifi-train, or name one as model.restorer in config.yml")
        return Restorer.from_pretrained(folder, device=self.device)

    def restore(self, rgb: Tensor, referenced: Callable[[], Tensor]) -> Tensor:
        """[H, W, 3] in [0, 1]: the restorer's view of `rgb`, or of `referenced()` if it was trained on such."""
        restorer = self.restorer
        return restorer(referenced() if restorer.input == "referenced" else rgb).to(rgb)

    def _or_rgb(self, rgb: Tensor, restored: Callable[[], Tensor]) -> Tensor:
        """`restored()`; where it fails, one line: in the viewer, which lives on with `rgb`, else the command ends."""
        try:
            return restored()
        except (NifiError, torch.cuda.OutOfMemoryError) as error:
            if not _in_viewer():
                raise SystemExit(f"error: {error}") from error
            if not self._complained:
                CONSOLE.print(f"[yellow]Showing the compressed view instead: {error}")
                self._complained = True
            return rgb

    def get_image_metrics_and_images(
        self, outputs: dict[str, Any], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Every metric that can be had, of the compressed view, and of the referenced and restored ones where they can.

        Names are those of `nifi_ns.metrics`, with `referenced_` and `restored_` in front. Evaluations in the midst of
        training leave the referenced views out: they would render several photos' views for each.
        """
        from nifi_ns.metrics import compute

        photo = self.photo(outputs, batch)
        shown = {"": outputs["rgb"]}
        if self.train_views is not None and not self._in_training:
            shown["referenced_"] = outputs["rgb_referenced"]
        if self.restorer_folder is not None:
            shown["restored_"] = outputs["rgb_restored"]
        measured = {prefix: compute(image, photo) for prefix, image in shown.items()}
        metrics = {p + name: value for p, row in measured.items() for name, value in row.items() if value is not None}
        return metrics, {"img": torch.cat([photo, *shown.values()], dim=1)}


def _in_viewer() -> bool:
    from nerfstudio.viewer.render_state_machine import RenderStateMachine

    return isinstance(threading.current_thread(), RenderStateMachine)


def _moving() -> bool:
    """Whether this thread renders for a viewer whose camera moves: the caller is the viewer's own render thread."""
    return getattr(threading.current_thread(), "state", "high") != "high"
