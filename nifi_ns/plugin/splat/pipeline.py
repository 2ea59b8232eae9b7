"""The pipeline: connects datamanager and model, and saves scene files."""

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.engine.trainer import Trainer
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE

from nifi_ns.files import format_size
from nifi_ns.plugin import repairs
from nifi_ns.plugin.data.datamanager import NifiDataManager, NifiDataManagerConfig
from nifi_ns.plugin.data.dataset_views import DatasetViews
from nifi_ns.plugin.distill.distillation import OFF, DistillationConfig, distillation_callbacks
from nifi_ns.plugin.splat.model import NifiSplatModel, NifiSplatModelConfig
from nifi_ns.plugin.splat.scene_files import SCENE_FILE, save_scene

if TYPE_CHECKING:
    from nifi_ns.compress import Compressed


@dataclass
class NifiPipelineConfig(VanillaPipelineConfig):
    """Nerfstudio's pipeline with this project's datamanager and model."""

    _target: type = field(default_factory=lambda: NifiPipeline)
    datamanager: NifiDataManagerConfig = field(default_factory=NifiDataManagerConfig)
    """Source of photos and cameras."""
    model: NifiSplatModelConfig = field(default_factory=NifiSplatModelConfig)
    """The splats, their compression and their restoration."""
    distill: DistillationConfig = OFF
    """Training on restored views (Difix3D)."""


class NifiPipeline(VanillaPipeline):
    """Connects datamanager and model once both exist, and saves the result of the compression stage."""

    config: NifiPipelineConfig
    model: NifiSplatModel
    datamanager: FullImageDatamanager

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        repairs.install_for_pipeline()
        super().__init__(*args, **kwargs)
        self.model.train_views = DatasetViews(self.datamanager, "train")
        # a run of stock splatfacto, opened with the config of its compression, has the stock datamanager
        if isinstance(self.datamanager, NifiDataManager):
            self.datamanager.renderer = self.model.get_outputs_for_camera

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Return the callbacks of datamanager and model, then those of the compression stage and of distillation."""
        callbacks = super().get_training_callbacks(training_callback_attributes)
        stage, trainer = self.config.model.compression, training_callback_attributes.trainer
        assert trainer is not None
        callbacks += self.model.compression.callbacks(partial(self._save_and_stop, trainer))
        compression_step = stage.start_step if stage.enabled else None
        return callbacks + distillation_callbacks(
            self.config.distill, self.model, self.datamanager, trainer, compression_step
        )

    def _save_and_stop(self, trainer: Trainer, compressed: "Compressed") -> None:
        """Write the scene file, save it in the run's own config, and end training."""
        data, model = compressed.data, self.model
        config_path = save_scene(trainer.config, data, model.config.compression.target_size)
        model.config.scene_file = config_path.with_name(SCENE_FILE)
        trainer.config.save_config()
        size, ratio = format_size(len(data)), model.uncompressed_splats.ply_size / len(data)
        CONSOLE.log(
            f"{len(compressed.splats):,} gaussians in {size}, {ratio:.0f}x smaller than the .ply: {config_path}"
        )
        trainer.stop_training = True  # else a resumed run would continue training after the file was written
