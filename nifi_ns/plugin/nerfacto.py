"""`nifi-nerfacto`: nerfacto (which has no gaussians) with restored views."""

from dataclasses import dataclass, field
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch import Tensor

from nifi_ns.errors import NifiError
from nifi_ns.plugin import repairs
from nifi_ns.plugin.data.datamanager import NifiDataManagerConfig
from nifi_ns.plugin.data.dataset_views import DatasetViews, camera_of
from nifi_ns.plugin.data.training_views import TrainingViews, TrainingViewsConfig
from nifi_ns.plugin.distill.distillation import OFF, DistillationConfig, distillation_callbacks
from nifi_ns.plugin.repairs.lpips_weights import without_lpips
from nifi_ns.plugin.restoration.restorable import RenderSnapshot
from nifi_ns.plugin.restoration.restored_outputs import RestoredOutputs, RestoredOutputsConfig
from nifi_ns.views import View

_EMPTY = 1e-3
"""Accumulated opacity below which a ray counts as empty."""


@dataclass
class NifiNerfactoModelConfig(RestoredOutputsConfig, NerfactoModelConfig):
    """Nerfacto, with restoration."""

    _target: type = field(default_factory=lambda: NifiNerfactoModel)
    run_folder: Path | None = None
    """The run's folder, searched for `nifi/restorer`. Set by training."""


class NifiNerfactoModel(RestoredOutputs, NerfactoModel):
    """Nerfacto with restored outputs."""

    config: NifiNerfactoModelConfig

    def populate_modules(self) -> None:
        """Build nerfacto without internet access."""
        with without_lpips():
            super().populate_modules()

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Return nerfacto's callbacks, and save the run's folder in its config."""
        trainer = training_callback_attributes.trainer
        if trainer is not None:
            self.config.run_folder = trainer.base_dir
            trainer.config.save_config()
        return super().get_training_callbacks(training_callback_attributes)

    @property
    def restorer_folder(self) -> Path | None:
        """The configured restorer, else the one in the run's folder if there is one."""
        if self.config.restorer is None and self.config.run_folder is not None:
            folder = self.config.run_folder / "nifi" / "restorer"
            return folder if (folder / "restorer.json").is_file() else None
        return self.config.restorer

    def get_loss_dict(self, outputs: Any, batch: Any, metrics_dict: Any = None) -> dict[str, Tensor]:
        """Return nerfacto's losses. Colours of a distilled view are weighted by the batch's `loss_weight`."""
        losses = super().get_loss_dict(outputs, batch, metrics_dict)
        losses["rgb_loss"] = batch.get("loss_weight", 1.0) * losses["rgb_loss"]
        return losses

    def snapshot(self, *, uncompressed: bool = False) -> RenderSnapshot:  # a field is never compressed
        """Return the field as it is now."""
        return RenderSnapshot(self._draw, ())

    def expected_depth(self, view: View, outputs: dict[str, Any]) -> Tensor:
        """Return the expected depth along the optical axis (nerfacto's is along the ray), [H, W, 1], 0 where empty."""
        y, x = torch.meshgrid(torch.arange(view.height), torch.arange(view.width), indexing="ij")
        pixels = torch.stack([x + 0.5, y + 0.5, torch.ones_like(x)], dim=-1).to(view.K)
        depth = outputs["expected_depth"] / (pixels @ view.K.inverse().T).norm(dim=-1, keepdim=True)
        return torch.where(outputs["accumulation"] > _EMPTY, depth, 0.0)

    def photo(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        """Return the photo of a batch, [H, W, 3], over nerfacto's background."""
        return self.renderer_rgb.blend_background(batch["image"].to(self.device))

    @torch.no_grad()
    def _draw(self, view: View) -> tuple[Tensor, Tensor]:
        # training renders the same field, with noise
        if self.still_training and current_thread() is not main_thread():
            raise NifiError("photos can be used only after training: open the finished run with ns-viewer")
        outputs = NerfactoModel.get_outputs_for_camera(self, camera_of(view).to(self.device))
        return outputs["rgb"], self.expected_depth(view, outputs)


@dataclass
class NifiRayManagerConfig(TrainingViewsConfig, VanillaDataManagerConfig):
    """Nerfacto's datamanager."""

    _target: type = field(default_factory=lambda: NifiRayManager)


class NifiRayManager(TrainingViews, VanillaDataManager[InputDataset]):
    """Returns rays of photos, and sometimes of a distilled view."""

    config: NifiRayManagerConfig

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Return rays and their colours [N, 3]. In a distilled view, pixels with a higher weight get more rays."""
        distilled = self.distilled_view(step)
        if distilled is None or not distilled[1]["mask"].any():
            return super().next_train(step)
        self.train_count += 1
        camera, batch = distilled
        _, width = batch["image"].shape[:2]
        weights = batch["mask"].flatten().double().cumsum(dim=0)
        drawn = torch.rand(self.config.train_num_rays_per_batch, dtype=weights.dtype, device=weights.device)
        chosen = torch.searchsorted(weights, drawn * weights[-1], right=True).clamp_max(len(weights) - 1)
        y, x = chosen // width, chosen % width
        rays = camera.generate_rays(
            camera_indices=torch.zeros_like(chosen)[:, None], coords=torch.stack([y, x], -1) + 0.5
        )
        # nerfacto learns an appearance per photo: use that of the nearest one
        assert self.train_dataset is not None and rays.camera_indices is not None
        centres = self.train_dataset.cameras.camera_to_worlds[:, :3, 3].to(self.device)
        nearest = (centres - camera.camera_to_worlds[0, :3, 3]).norm(dim=-1).argmin()
        rays.camera_indices = nearest.expand_as(rays.camera_indices)
        return rays, {"image": batch["image"][y, x].float() / 255, "loss_weight": batch["loss_weight"]}


@dataclass
class NifiNerfactoPipelineConfig(VanillaPipelineConfig):
    """Nerfstudio's pipeline for fields, which also gives the model the capture's photos."""

    _target: type = field(default_factory=lambda: NifiNerfactoPipeline)
    datamanager: NifiRayManagerConfig = field(default_factory=NifiRayManagerConfig)
    """Source of the rays."""
    model: NifiNerfactoModelConfig = field(default_factory=NifiNerfactoModelConfig)
    """The field, and how its views are restored."""
    distill: DistillationConfig = OFF
    """Training on restored views (Difix3D)."""


class NifiNerfactoPipeline(VanillaPipeline):
    """Gives the model the capture's photos."""

    config: NifiNerfactoPipelineConfig
    model: NifiNerfactoModel
    datamanager: NifiRayManager

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        repairs.install_for_pipeline()
        super().__init__(*args, **kwargs)
        # a datamanager of full images undistorts them, and views have no distortion
        photos = NifiDataManagerConfig(
            data=self.config.datamanager.data,
            dataparser=self.config.datamanager.dataparser,
            max_train_views=self.config.datamanager.max_train_views,
            cache_images_type="uint8",
        )
        images = photos.setup(device=self.device, test_mode=self.test_mode)
        self.model.train_views = DatasetViews(images, "train")

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Return the callbacks of datamanager and model, then those of distillation."""
        callbacks = super().get_training_callbacks(training_callback_attributes)
        trainer = training_callback_attributes.trainer
        return callbacks + distillation_callbacks(self.config.distill, self.model, self.datamanager, trainer)
