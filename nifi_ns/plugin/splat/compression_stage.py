"""The compression stage of training: Nix's schedule, run by nerfstudio's trainer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from torch import Tensor, nn

from nifi_ns.compress import CompressionSettings
from nifi_ns.splats import Splats

if TYPE_CHECKING:
    from nifi_ns.compress import Compressed, Compressor, Importance
    from nifi_ns.views import View


@dataclass(frozen=True)
class CompressionStageConfig(CompressionSettings):
    """When training compresses, and to which size."""

    enabled: bool = True
    """Compress at the end of training. `ns-nifi-compress` can also do it later."""
    start_step: int = 22_000
    """Training step at which densification ends and pruning begins."""

    @property
    def end_step(self) -> int:
        """The first step after the stage."""
        return self.start_step + self.steps


class CompressibleModel(Protocol):
    """The part of a model that the stage uses."""

    config: Any
    """Has `sh_degree` and `rasterize_mode`, like splatfacto's."""
    step: int
    gauss_params: nn.ParameterDict
    optimizers: dict[str, Any]
    """One per entry of `gauss_params`."""
    train_views: "Sequence[View] | None"
    background_color: Tensor

    @property
    def is_compressed(self) -> bool:
        """Whether the uncompressed splats are stored."""
        ...

    @property
    def uncompressed_splats(self) -> Splats:
        """The splats before compression."""
        ...

    def keep_uncompressed(self) -> None:
        """Store the current splats as the uncompressed ones."""
        ...

    def set_splats(self, splats: Splats) -> None:
        """Replace the model's gaussians."""
        ...


class CompressionStage:
    """Prunes and fine-tunes a model's gaussians with the quantisers in the loop, and passes on the result to be saved.

    A checkpoint stores no state of the stage except the uncompressed splats, which are part of the model. A run that is
    resumed within the stage starts it again from them.
    """

    def __init__(self, config: CompressionStageConfig, model: CompressibleModel) -> None:
        self.config = config
        self._model = model
        self._compressor: Compressor | None = None
        self._importance_views: list[View] = []
        self._extent = 1.0
        self._sh_degree = 0

    @property
    def running(self) -> bool:
        """Whether the current training step belongs to the stage."""
        return self._compressor is not None

    def quantized_params(self) -> dict[str, Tensor]:
        """Return the model's `gauss_params` as decoded from the scene file, differentiably. Only during the stage."""
        assert self._compressor is not None
        step = self._model.step - self.config.start_step
        splats = self._compressor.as_decoded(step, self._splats(), self._measure_importance)
        return splats.to_gauss_params(self._model.config.sh_degree)

    def callbacks(self, finish: "Callable[[Compressed], None]") -> list[TrainingCallback]:
        """Return the callbacks that the trainer calls before and after its iterations.

        Args:
            finish: called with the result after the stage's last step, to save the scene and end training.
        """
        if not self.config.enabled:
            return []
        before, after = TrainingCallbackLocation.BEFORE_TRAIN_ITERATION, TrainingCallbackLocation.AFTER_TRAIN_ITERATION
        return [
            TrainingCallback([before], self._before_step),
            TrainingCallback([after], self._after_step, args=[finish]),
        ]

    def _before_step(self, step: int) -> None:
        if not self.config.start_step <= step < self.config.end_step:
            return
        from gsplat.strategy.ops import remove

        model = self._model
        if self._compressor is None:
            self._compressor = self._begin()
        step -= self.config.start_step
        keep = self._compressor.prune_mask(step, self._splats().detach(), self._measure_importance)
        if keep is not None:
            remove(model.gauss_params, model.optimizers, {}, ~keep)
        self._set_learning_rates(step)

    def _begin(self) -> "Compressor":
        from nifi_ns.compress import Compressor, chosen_sh_degree, extent, importance_views

        model = self._model
        if not model.is_compressed:
            model.keep_uncompressed()
        self._sh_degree = chosen_sh_degree(model.uncompressed_splats, self.config)
        assert model.train_views is not None
        self._importance_views = importance_views(model.train_views, self.config.importance_views)
        self._extent = extent(model.train_views)
        return Compressor(self.config, antialiased=model.config.rasterize_mode == "antialiased")

    def _after_step(self, finish: "Callable[[Compressed], None]", step: int) -> None:
        if step != self.config.end_step - 1 or self._compressor is None:
            return
        model = self._model
        compressed = self._compressor.finish(self._splats(), self._measure_importance)
        self._compressor = None
        model.set_splats(compressed.splats)
        for name, parameter in model.gauss_params.items():
            # decoding changes the order of gaussians, so the optimisers' moments no longer match them
            model.optimizers[name].state.clear()
            model.optimizers[name].param_groups[0]["params"] = [parameter]
        finish(compressed)

    def _measure_importance(self, splats: Splats) -> "Importance":
        """Return the importance of `splats` in the training views and between them."""
        from nifi_ns.compress import measure_importance

        model = self._model
        antialiased = model.config.rasterize_mode == "antialiased"
        return measure_importance(
            splats,
            self._importance_views,
            background=model.background_color,
            antialiased=antialiased,
            seed=self.config.seed,
        )

    def _set_learning_rates(self, step: int) -> None:
        """Set the learning rates of this iteration, because nerfstudio's schedulers run only after it."""
        from nifi_ns.compress import learning_rates

        rates = learning_rates(step, self.config, self._extent)
        rates |= {"features_dc": rates["sh0"], "features_rest": rates["shN"]}
        for name in self._model.gauss_params:
            self._model.optimizers[name].param_groups[0]["lr"] = rates[name]

    def _splats(self) -> Splats:
        """Return the model's gaussians with the SH degree of the scene file, in the graph of its parameters."""
        splats = Splats.from_gauss_params(self._model.gauss_params)
        return splats.with_sh_degree(self._sh_degree)
