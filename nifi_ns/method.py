"""The methods that nerfstudio registers. Every `ns-*` command imports this module: no heavy imports here."""

from copy import deepcopy

import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.configs.base_config import LoggingConfig, ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.plugins.types import MethodSpecification

from nifi_ns.plugin import repairs
from nifi_ns.plugin.data.datamanager import NifiDataManagerConfig
from nifi_ns.plugin.nerfacto import NifiNerfactoModelConfig, NifiNerfactoPipelineConfig, NifiRayManagerConfig
from nifi_ns.plugin.repairs.viewer_host import LOCAL
from nifi_ns.plugin.splat.compression_stage import CompressionStageConfig
from nifi_ns.plugin.splat.model import NifiSplatModelConfig
from nifi_ns.plugin.splat.pipeline import NifiPipelineConfig

repairs.install()


def _adam(lr: float) -> AdamOptimizerConfig:
    return AdamOptimizerConfig(lr=lr, eps=1e-15)


def _optimizers(steps: int) -> dict:
    """Return splatfacto's optimizers, with schedules that end at `steps`."""
    return {
        "means": {
            "optimizer": _adam(1.6e-4),
            "scheduler": ExponentialDecaySchedulerConfig(lr_final=1.6e-6, max_steps=steps),
        },
        "features_dc": {"optimizer": _adam(0.0025), "scheduler": None},
        "features_rest": {"optimizer": _adam(0.0025 / 20), "scheduler": None},
        "opacities": {"optimizer": _adam(0.05), "scheduler": None},
        "scales": {"optimizer": _adam(0.005), "scheduler": None},
        "quats": {"optimizer": _adam(0.001), "scheduler": None},
        "camera_opt": {
            "optimizer": _adam(1e-4),
            "scheduler": ExponentialDecaySchedulerConfig(
                lr_final=5e-7, max_steps=steps, warmup_steps=1000, lr_pre_warmup=0
            ),
        },
        "bilateral_grid": {
            "optimizer": _adam(2e-3),
            "scheduler": ExponentialDecaySchedulerConfig(
                lr_final=1e-4, max_steps=steps, warmup_steps=1000, lr_pre_warmup=0
            ),
        },
    }


_full = TrainerConfig(
    method_name="nifi-splat",
    steps_per_eval_image=100,
    steps_per_eval_batch=0,
    steps_per_eval_all_images=1000,
    steps_per_save=2000,
    max_num_iterations=30_000,
    pipeline=NifiPipelineConfig(
        datamanager=NifiDataManagerConfig(
            dataparser=NerfstudioDataParserConfig(load_3D_points=True), cache_images_type="uint8"
        ),
        model=NifiSplatModelConfig(
            compression=CompressionStageConfig(start_step=22_000, steps=8_000, target_size="360KB"),
        ),
    ),
    optimizers=_optimizers(30_000),
    # unlike nerfstudio's default, the viewer is reachable only from this machine
    viewer=ViewerConfig(num_rays_per_chunk=1 << 15, websocket_host=LOCAL),
    vis="viewer",
)
_full.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"

nifi_splat = MethodSpecification(
    config=_full,
    description="Splatfacto, compressed to a scene file of a few hundred kilobytes, with restored views (NiFi).",
)


def _lite() -> TrainerConfig:
    config = deepcopy(_full)
    config.method_name = "nifi-splat-lite"
    config.max_num_iterations = 5_000
    config.steps_per_save = 1_000
    config.optimizers = _optimizers(3_500)
    config.logging = LoggingConfig(steps_per_log=50)
    config.viewer.quit_on_train_completion = True
    model = config.pipeline.model
    assert isinstance(model, NifiSplatModelConfig)
    # the photos are small: start at full resolution, and densify at once
    model.num_downscales = 0
    model.sh_degree = 1
    model.sh_degree_interval = 1_500
    model.warmup_length = 200
    model.stop_split_at = 2_500
    model.cull_alpha_thresh = 0.005
    model.max_gaussians = 30_000
    model.compression = CompressionStageConfig(start_step=3_500, steps=1_500, target_size="60KB")
    return config


nifi_splat_lite = MethodSpecification(
    config=_lite(),
    description="nifi-splat for laptops and captures with small photos: takes minutes on two CPU cores.",
)


_nerfacto = TrainerConfig(
    method_name="nifi-nerfacto",
    steps_per_eval_batch=500,
    steps_per_save=2000,
    max_num_iterations=30_000,
    mixed_precision=torch.cuda.is_available(),
    pipeline=NifiNerfactoPipelineConfig(
        datamanager=NifiRayManagerConfig(
            dataparser=NerfstudioDataParserConfig(), train_num_rays_per_batch=4096, eval_num_rays_per_batch=4096
        ),
        model=NifiNerfactoModelConfig(
            eval_num_rays_per_chunk=1 << 15,
            average_init_density=0.01,
            # restoring with photos uses the poses of the dataset, which must stay valid
            camera_optimizer=CameraOptimizerConfig(mode="off"),
            implementation="tcnn" if torch.cuda.is_available() else "torch",
        ),
    ),
    optimizers={
        **{
            name: {
                "optimizer": AdamOptimizerConfig(lr=1e-2, eps=1e-15),
                "scheduler": ExponentialDecaySchedulerConfig(lr_final=0.0001, max_steps=200_000),
            }
            for name in ("proposal_networks", "fields")
        },
        "camera_opt": {
            "optimizer": AdamOptimizerConfig(lr=1e-3, eps=1e-15),
            "scheduler": ExponentialDecaySchedulerConfig(lr_final=1e-4, max_steps=5000),
        },
    },
    viewer=ViewerConfig(num_rays_per_chunk=1 << 15, websocket_host=LOCAL),
    vis="viewer",
)
_nerfacto.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"

nifi_nerfacto = MethodSpecification(
    config=_nerfacto, description="Nerfacto with restored views (NiFi): restoring without gaussians."
)
