"""`nifi-nerfacto`: nerfacto, which holds no gaussians, with restored views."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch import Tensor

from nifi_ns.errors import NifiError
from nifi_ns.plugin.repairs.lpips_weights import without_lpips
from nifi_ns.plugin.restorable import Shown
from nifi_ns.plugin.restoration import RestoredViews, RestoredViewsConfig
from nifi_ns.plugin.speed import show_speeds
from nifi_ns.plugin.views import DatasetViews, camera_of
from nifi_ns.views import View


@dataclass
class NifiNerfactoModelConfig(RestoredViewsConfig, NerfactoModelConfig):
    """Nerfacto, and how its views are restored."""

    _target: type = field(default_factory=lambda: NifiNerfactoModel)
    run_folder: Path | None = None
    """Where `nifi/restorer` is looked for. Written by training."""


class NifiNerfactoModel(RestoredViews, NerfactoModel):
    """Nerfacto with restored outputs."""

    config: NifiNerfactoModelConfig

    def populate_modules(self) -> None:
        """Build nerfacto without a network."""
        with without_lpips():
            super().populate_modules()

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Nerfacto's; the run's own config says from now on where the run is."""
        trainer = training_callback_attributes.trainer
        if trainer is not None:
            self.config.run_folder = trainer.base_dir
            trainer.config.save_config()
        return super().get_training_callbacks(training_callback_attributes)

    @property
    def restorer_folder(self) -> Path | None:
        """Where the restorer is: as configured, else in the run's folder if there is one."""
        if self.config.restorer is None and self.config.run_folder is not None:
            folder = self.config.run_folder / "nifi" / "restorer"
            return folder if (folder / "restorer.json").is_file() else None
        return self.config.restorer

    def shown(self, *, uncompressed: bool = False) -> Shown:  # it never is compressed
        """The field."""
        return Shown(self._draw, ())

    def depth_of(self, view: View, outputs: dict[str, Any]) -> Tensor:
        """[H, W, 1]: expected depth along the optical axis; nerfacto measures it along the ray."""
        y, x = torch.meshgrid(torch.arange(view.height), torch.arange(view.width), indexing="ij")
        pixels = torch.stack([x + 0.5, y + 0.5, torch.ones_like(x)], dim=-1).to(view.K)
        return outputs["expected_depth"] / (pixels @ view.K.inverse().T).norm(dim=-1, keepdim=True)

    def photo(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        """[H, W, 3]: the photo in a batch, over nerfacto's background."""
        return self.renderer_rgb.blend_background(batch["image"].to(self.device))

    @torch.no_grad()
    def _draw(self, view: View) -> tuple[Tensor, Tensor]:
        if self.still_training:  # the field is shared with the training, which draws it with noise
            raise NifiError("photos are used when training has ended: open the run with ns-viewer")
        outputs = NerfactoModel.get_outputs_for_camera(self, camera_of(view).to(self.device))
        return outputs["rgb"], self.depth_of(view, outputs)


@dataclass
class NifiNerfactoPipelineConfig(VanillaPipelineConfig):
    """Nerfstudio's pipeline of rays, with the capture's photos for the model."""

    _target: type = field(default_factory=lambda: NifiNerfactoPipeline)
    datamanager: VanillaDataManagerConfig = field(default_factory=VanillaDataManagerConfig)
    """Where rays come from."""
    model: NifiNerfactoModelConfig = field(default_factory=NifiNerfactoModelConfig)
    """The field and how its views are restored."""


class NifiNerfactoPipeline(VanillaPipeline):
    """Binds the capture's photos to the model."""

    config: NifiNerfactoPipelineConfig
    model: NifiNerfactoModel
    datamanager: VanillaDataManager

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        show_speeds()
        # a datamanager of full images, since it undistorts them: views have no distortion
        photos = FullImageDatamanagerConfig(
            data=self.config.datamanager.data,
            dataparser=self.config.datamanager.dataparser,
            cache_images_type="uint8",
        )
        images = photos.setup(device=self.device, test_mode=self.test_mode)
        self.model.train_views = DatasetViews(images, "train")
