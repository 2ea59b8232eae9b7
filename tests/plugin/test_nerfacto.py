"""A model without gaussians: a miniature nerfacto on the CPU."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.scripts.render import RenderInterpolated
from PIL import Image
from tiny_runs import save_restorer, train

from nifi_ns.plugin.data.dataset_views import camera_of, view_of
from nifi_ns.plugin.distill.distillation import DistillationConfig
from nifi_ns.plugin.distill.generations import Generation
from nifi_ns.plugin.nerfacto import NifiNerfactoModel, NifiRayManager


def small(data: Path, output: Path, steps: int) -> TrainerConfig:
    """Return the config of `nifi-nerfacto` with few rays, samples and hash entries."""
    config = deepcopy(all_methods["nifi-nerfacto"])
    config.machine.device_type = "cpu"
    config.output_dir, config.experiment_name, config.timestamp = output, "tiny", "now"
    config.data = config.pipeline.datamanager.data = data
    config.pipeline.datamanager.train_num_rays_per_batch = 256  # type: ignore[attr-defined]
    config.vis = "tensorboard"
    config.logging.local_writer.enable = False
    config.max_num_iterations, config.steps_per_save = steps, steps
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 10_000
    proposal = {"hidden_dim": 8, "log2_hashmap_size": 10, "num_levels": 3, "max_res": 32, "use_linear": False}
    smaller = {
        "log2_hashmap_size": 12,
        "num_levels": 6,
        "max_res": 128,
        "hidden_dim": 16,
        "hidden_dim_color": 16,
        "num_proposal_samples_per_ray": (32, 16),
        "num_nerf_samples_per_ray": 12,
        "proposal_net_args_list": [proposal, proposal],
        "implementation": "torch",
        "num_reference_photos": 3,
    }
    vars(config.pipeline.model).update(smaller)
    return config


@pytest.fixture(scope="module")
def nerfacto(tiny_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return train(small(tiny_capture, tmp_path_factory.mktemp("nerfacto"), 12))


@pytest.fixture(scope="module")
def nerfacto_config(nerfacto: Trainer) -> Path:
    save_restorer(nerfacto.base_dir / "nifi" / "restorer")
    return nerfacto.base_dir / "config.yml"


def model_of(trainer: Trainer) -> NifiNerfactoModel:
    model = trainer.pipeline.model
    assert isinstance(model, NifiNerfactoModel)
    return model


def test_a_view_converts_to_a_camera_and_back(nerfacto: Trainer) -> None:
    dataset = nerfacto.pipeline.datamanager.train_dataset
    assert dataset is not None
    camera = dataset.cameras[3:4]
    again = camera_of(view_of(camera))
    torch.testing.assert_close(again.camera_to_worlds, camera.camera_to_worlds)
    torch.testing.assert_close(again.get_intrinsics_matrices(), camera.get_intrinsics_matrices())
    assert (again.width, again.height) == (camera.width, camera.height)


def test_depth_is_measured_along_the_optical_axis(nerfacto: Trainer) -> None:
    dataset = nerfacto.pipeline.datamanager.train_dataset
    assert dataset is not None
    camera = dataset.cameras[0:1]
    view = view_of(camera)
    rays = camera.generate_rays(camera_indices=0, keep_shape=True)
    distance = torch.full((view.height, view.width, 1), 2.0)
    points = rays.origins + 2.0 * rays.directions
    z = (points @ view.viewmat[:3, :3].T + view.viewmat[:3, 3])[..., 2:]
    seen = torch.ones_like(distance)
    seen[:3] = 0  # these rays are empty: their depth is 0
    outputs = {"expected_depth": distance, "accumulation": seen}
    torch.testing.assert_close(model_of(nerfacto).expected_depth(view, outputs), torch.where(seen > 0, z, 0.0))


def test_nerfacto_is_restored_by_its_photos_and_by_its_restorer(nerfacto_config: Path, tmp_path: Path) -> None:
    RenderInterpolated(
        load_config=nerfacto_config,
        output_path=tmp_path / "path.mp4",
        rendered_output_names=["rgb", "rgb_referenced", "rgb_restored", "restoration_change"],
        interpolation_steps=1,
        output_format="images",
        image_format="png",
    ).main()
    (frame,) = (tmp_path / "path").glob("*.png")
    rgb, referenced, restored, change = np.split(np.asarray(Image.open(frame)).astype(float), 4, axis=1)
    assert rgb.shape == (48, 64, 3)
    for one, other in ((rgb, referenced), (rgb, restored), (referenced, restored)):
        assert np.abs(one - other).mean() > 0.5
    assert len(np.unique(change.reshape(-1, 3), axis=0)) > 2  # drawn with a colour map


def test_the_field_trains_on_restored_views(tiny_capture: Path, tmp_path: Path) -> None:
    config = small(tiny_capture, tmp_path, 8)
    config.pipeline.distill = DistillationConfig(steps=(4,), views_per_step=2, share=0.5, weight=0.3)  # type: ignore[attr-defined]
    config.pipeline.datamanager.max_train_views = 5  # type: ignore[attr-defined]
    trainer = train(config)
    manager, model = trainer.pipeline.datamanager, model_of(trainer)
    assert isinstance(manager, NifiRayManager) and manager.train_dataset is not None
    assert len(manager.train_dataset) == 5 and model.train_views is not None and len(model.train_views) == 5
    generation = Generation.find([trainer.base_dir], 4)
    assert generation is not None and len(generation.views) == 2
    step = next(step for step in range(100, 160) if manager.distilled_view(step) is not None)
    camera, picture = manager.distilled_view(step) or (None, {})
    rays, batch = manager.next_train(step)
    assert camera is not None and rays.camera_indices is not None and rays.camera_indices.max() < 5
    # every ray starts at the camera, and has the colour of the restored view
    view = view_of(camera)
    points = rays.origins + rays.directions
    torch.testing.assert_close(rays.origins, view.centre.expand_as(rays.origins), atol=1e-4, rtol=0)
    pixels = (points @ view.viewmat[:3, :3].T + view.viewmat[:3, 3]) @ view.K.T
    x, y = (pixels[:, :2] / pixels[:, 2:]).floor().long().unbind(dim=-1)
    torch.testing.assert_close(batch["image"], picture["image"][y, x].float() / 255)
    assert (picture["mask"][y, x] > 0).all()
    with torch.no_grad():
        outputs = model.eval()(rays)
    whole, weighted = (model.get_loss_dict(outputs, batch | {"loss_weight": w})["rgb_loss"] for w in (1.0, 0.3))
    assert batch["loss_weight"] == 0.3
    torch.testing.assert_close(weighted, 0.3 * whole)


def test_ns_eval_reports_all_views_of_nerfacto(nerfacto_config: Path, tmp_path: Path) -> None:
    ComputePSNR(load_config=nerfacto_config, output_path=tmp_path / "eval.json").main()
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert {"psnr", "referenced_psnr", "restored_psnr"} <= set(results)


@torch.no_grad()
def training_psnr(trainer: Trainer) -> float:
    """Return the mean PSNR over the first training views. The capture is too small for held-out ones to gain."""
    dataset = trainer.pipeline.datamanager.train_dataset
    assert dataset is not None
    model = model_of(trainer).eval()
    values = []
    for index in range(3):
        rgb = model.get_outputs_for_camera(dataset.cameras[index : index + 1])["rgb"]
        values.append(float(-10 * (rgb - dataset[index]["image"]).square().mean().log10()))
    return sum(values) / len(values)


@pytest.mark.slow
def test_nerfacto_learns_the_capture(nerfacto: Trainer, tiny_capture: Path, tmp_path: Path) -> None:
    before = training_psnr(nerfacto)
    after = training_psnr(train(small(tiny_capture, tmp_path, 400)))
    assert after > before + 1
