"""The compression stage of training: Nix's schedule, driven by nerfstudio's trainer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from nifi_ns.compress import CompressionSettings
from nifi_ns.files import format_size
from nifi_ns.splats import Splats

if TYPE_CHECKING:
    from nifi_ns.compress import Compressor, Importance
    from nifi_ns.plugin.model import NifiSplatModel
    from nifi_ns.views import View


@dataclass(frozen=True)
class CompressionStageConfig(CompressionSettings):
    """When training compresses, and into how much."""

    enabled: bool = True
    """Whether training ends with compression; `ns-nifi-compress` can always do it later."""
    start_step: int = 22_000
    """Training step at which densification is over and pruning begins."""

    @property
    def end_step(self) -> int:
        """The first step after the stage."""
        return self.start_step + self.steps


class CompressionStage:
    """Prunes and fine-tunes a model's gaussians with the quantisers in the loop, and leaves a scene file in the run.

    Nothing of it needs to be in a checkpoint but the uncompressed splats, which the model keeps: a run that is resumed
    within the stage goes on from them.
    """

    def __init__(self, config: CompressionStageConfig, model: "NifiSplatModel") -> None:
        self.config = config
        self._model = model
        self._compressor: Compressor | None = None
        self._judging_views: list[View] = []
        self._extent = 1.0
        self._sh_degree = 0

    @property
    def running(self) -> bool:
        """Whether the present training step belongs to the stage."""
        return self._compressor is not None

    def quantized_params(self) -> dict[str, Tensor]:
        """The model's `gauss_params` as the scene file would decode to, differentiably, within the stage."""
        assert self._compressor is not None
        step = self._model.step - self.config.start_step
        splats = self._compressor.as_decoded(step, self._splats(), self._judge)
        return splats.to_gauss_params(self._model.config.sh_degree)

    def callbacks(self, trainer: Trainer) -> list[TrainingCallback]:
        """What the trainer calls before and after its iterations."""
        if not self.config.enabled:
            return []
        before, after = TrainingCallbackLocation.BEFORE_TRAIN_ITERATION, TrainingCallbackLocation.AFTER_TRAIN_ITERATION
        return [
            TrainingCallback([before], self._before_step),
            TrainingCallback([after], self._after_step, args=[trainer]),
        ]

    def _before_step(self, step: int) -> None:
        if not self.config.start_step <= step < self.config.end_step:
            return
        from gsplat.strategy.ops import remove

        model = self._model
        if self._compressor is None:
            from nifi_ns.compress import Compressor, chosen_sh_degree, extent, judging_views

            if model.uncompressed is None:
                model.keep_uncompressed()
            self._sh_degree = chosen_sh_degree(model.uncompressed_splats, self.config)
            antialiased = model.config.rasterize_mode == "antialiased"
            self._compressor = Compressor(self.config, antialiased=antialiased)
            assert model.train_views is not None
            self._judging_views = judging_views(model.train_views, self.config.importance_views)
            self._extent = extent(model.train_views)
        keep = self._compressor.prune_mask(step - self.config.start_step, self._splats().detach(), self._judge)
        if keep is not None:
            remove(model.gauss_params, model.optimizers, {}, ~keep)
        self._set_learning_rates(step - self.config.start_step)

    def _after_step(self, trainer: Trainer, step: int) -> None:
        if step != self.config.end_step - 1 or self._compressor is None:
            return
        from nifi_ns.plugin.runs import save_scene

        model = self._model
        compressed = self._compressor.finish(self._splats(), self._judge)
        self._compressor = None
        model.show(compressed.splats)
        for name, parameter in model.gauss_params.items():
            # what the file decodes to is in another order: no moments of the optimizers belong to it
            model.optimizers[name].state.clear()
            model.optimizers[name].param_groups[0]["params"] = [parameter]
        config_path = save_scene(trainer.config, compressed.data, self.config.target_size)
        # the run's own config shows the file from now on, too
        model.config.scene_file = config_path.with_name("scene.nifi")
        trainer.config.save_config()
        size, ratio = format_size(len(compressed.data)), model.uncompressed_splats.ply_size / len(compressed.data)
        CONSOLE.log(
            f"{len(compressed.splats):,} gaussians in {size}, {ratio:.0f}x smaller than the .ply: {config_path}"
        )
        trainer.stop_training = True  # a resumed run would otherwise train on, on what is already in the file

    def _judge(self, splats: Splats) -> "Importance":
        """The importance of `splats`, in the training views and between them."""
        from nifi_ns.compress import importance

        background = self._model.background_color
        return importance(splats, self._judging_views, background=background, seed=self.config.seed)

    def _set_learning_rates(self, step: int) -> None:
        """Those of the fine-tuning, for this iteration; nerfstudio's schedulers set theirs only after it."""
        from nifi_ns.compress import learning_rates

        rates = learning_rates(step, self.config, self._extent)
        rates |= {"features_dc": rates["sh0"], "features_rest": rates["shN"]}
        for name in self._model.gauss_params:
            self._model.optimizers[name].param_groups[0]["lr"] = rates[name]

    def _splats(self) -> Splats:
        """The model's gaussians with the harmonics that the file will keep, in the graph of its parameters."""
        splats = Splats.from_gauss_params(self._model.gauss_params)
        return splats.with_sh_degree(self._sh_degree)
