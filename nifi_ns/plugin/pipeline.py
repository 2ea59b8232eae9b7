"""The pipeline that lets the model see the capture's photos, and the datamanager what the model renders."""

from dataclasses import dataclass, field
from typing import Any

from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig

from nifi_ns.plugin.datamanager import NifiDataManager, NifiDataManagerConfig
from nifi_ns.plugin.dataset_views import DatasetViews
from nifi_ns.plugin.distillation import OFF, DistillationConfig, repairing
from nifi_ns.plugin.model import NifiSplatModel, NifiSplatModelConfig
from nifi_ns.plugin.repairs.spiral import allow_full_images
from nifi_ns.plugin.speed import show_speeds


@dataclass
class NifiPipelineConfig(VanillaPipelineConfig):
    """Nerfstudio's pipeline of this project's datamanager and model."""

    _target: type = field(default_factory=lambda: NifiPipeline)
    datamanager: NifiDataManagerConfig = field(default_factory=NifiDataManagerConfig)
    """Where photos and cameras come from."""
    model: NifiSplatModelConfig = field(default_factory=NifiSplatModelConfig)
    """The splats and what becomes of them."""
    fix: DistillationConfig = OFF
    """Repairs that go back into the splats."""


class NifiPipeline(VanillaPipeline):
    """Binds datamanager and model to each other once both exist."""

    config: NifiPipelineConfig
    model: NifiSplatModel
    datamanager: FullImageDatamanager

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        allow_full_images()
        show_speeds()
        self.model.train_views = DatasetViews(self.datamanager, "train")
        # a run of stock splatfacto, opened by its compressed config, keeps the stock datamanager
        if isinstance(self.datamanager, NifiDataManager):
            self.datamanager.renderer = self.model.get_outputs_for_camera

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Those of datamanager and model, and after them the repairs'."""
        callbacks = super().get_training_callbacks(training_callback_attributes)
        stage, trainer = self.config.model.compression, training_callback_attributes.trainer
        compression_step = stage.start_step if stage.enabled else None
        return callbacks + repairing(self.config.fix, self.model, self.datamanager, trainer, compression_step)
