"""The interface of a nerfstudio model whose views can be restored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.models.base_model import Model
from torch import Tensor

from nifi_ns.plugin.restoration.restoration_choice import RestorationChoice
from nifi_ns.views import View

if TYPE_CHECKING:
    from nifi_ns.references import Renderer
    from nifi_ns.splats import Splats


@dataclass(frozen=True)
class RenderSnapshot:
    """The state that a model renders at one moment. Another thread may render it later."""

    draw: "Renderer"
    """Renders a view: colour [H, W, 3] in [0, 1], and expected depth [H, W, 1], 0 where nothing is rendered."""
    key: Hashable
    """Equal for snapshots that look the same at the same training step."""


class RestorableModel(Model, ABC):
    """A nerfstudio model whose views can be restored.

    Subclasses implement `snapshot` and `photo`; everything else has a default.
    """

    config: Any
    """The model's own config, which is also a `RestoredOutputsConfig`."""
    train_views: Sequence[View] | None = None
    """The capture's photos, set by the pipeline. Without them there are no reference residuals."""
    _in_training = False

    @abstractmethod
    def snapshot(self, *, uncompressed: bool = False) -> RenderSnapshot:
        """Return what this thread renders now, or what it would render without compression."""

    @abstractmethod
    def photo(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        """Return the photo of a batch, [H, W, 3], with the size and background of `outputs`."""

    @abstractmethod
    def trained_choice(self, restorer: Path | None) -> RestorationChoice:
        """Return how the given restorer was trained to be used.

        Raises:
            NifiError: if there is no such restorer.
        """

    def expected_depth(self, view: View, outputs: dict[str, Any]) -> Tensor | None:
        """Return the depth along the optical axis, [H, W, 1], 0 where empty; None if it was not rendered."""
        return outputs["depth"]

    def extra_outputs(self, view: View, crop: OrientedBox | None) -> dict[str, Callable[[], Tensor]]:
        """Return further pictures [H, W, 3] by name, each a function to call. In motion, `rgb` replaces them."""
        return {}

    @property
    def training_step(self) -> int:
        """The last training step."""
        return getattr(self, "step", 0)

    @property
    def still_training(self) -> bool:
        """Whether this process is training what it renders."""
        return self._in_training

    @property
    def uncompressed_splats(self) -> "Splats | None":
        """The gaussians before compression; None if the model has no gaussians."""
        return None

    @property
    def is_compressed(self) -> bool:
        """Whether the gaussians before compression are stored beside the current ones."""
        return False

    @property
    def scene_file(self) -> Path | None:
        """The scene file in use, if there is one."""
        return None

    @property
    def restorer_folder(self) -> Path | None:
        """The restorer in the config or in the run's folder, if there is one."""
        return self.config.restorer

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Return the model's own callbacks, and record that this process trains."""
        self._in_training = True
        return super().get_training_callbacks(training_callback_attributes)
