"""What a nerfstudio model says of itself, so that its views can be restored: see `RestoredViews`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.models.base_model import Model
from torch import Tensor

from nifi_ns.views import View

if TYPE_CHECKING:
    from nifi_ns.references import Renderer
    from nifi_ns.splats import Splats


@dataclass(frozen=True)
class Shown:
    """What a model shows at one moment, for whoever draws more of it later, in another thread."""

    draw: "Renderer"
    """Draws a view: [H, W, 3] in [0, 1], and expected depth [H, W, 1]."""
    key: Hashable
    """Equal for what looks the same at the same step of training."""


class Restorable(Model, ABC):
    """How a model draws and what it has, for its views to be restored. Only `shown` and `photo` have no default."""

    config: Any
    """The model's own, and a `RestoredViewsConfig`."""
    train_views: Sequence[View] | None = None
    """The capture's photos, bound by the pipeline; without them there is no `rgb_referenced`."""
    _in_training = False

    @abstractmethod
    def shown(self, *, uncompressed: bool = False) -> Shown:
        """What the model shows in this thread, now; or would show if it were not compressed."""

    @abstractmethod
    def photo(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        """[H, W, 3]: the photo in a batch, of the size and over the background of the outputs."""

    def depth_of(self, view: View, outputs: dict[str, Any]) -> Tensor:
        """[H, W, 1]: expected depth along the optical axis, as the model's outputs of a view have it."""
        return outputs["depth"]

    def more_outputs(self, view: View, obb_box: OrientedBox | None) -> dict[str, Callable[[], Tensor]]:
        """Pictures [H, W, 3] that the model can also draw of a view; `rgb` stands for them while the camera moves."""
        return {}

    @property
    def training_step(self) -> int:
        """How far training has come."""
        return getattr(self, "step", 0)

    @property
    def still_training(self) -> bool:
        """Whether this process trains what is shown."""
        return self._in_training

    @property
    def uncompressed_splats(self) -> "Splats | None":
        """The gaussians before compression, if the model holds gaussians."""
        return None

    @property
    def shown_file(self) -> Path | None:
        """The scene file that is shown, if one is."""
        return None

    @property
    def restorer_folder(self) -> Path | None:
        """Where the restorer is."""
        return self.config.restorer

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """The model's own; remembers that this process trains."""
        self._in_training = True
        return super().get_training_callbacks(training_callback_attributes)
