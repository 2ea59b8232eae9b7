"""A trained `nifi-splat` renders what its file decodes to, and restores views only when they are read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.trainer import Trainer
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.scripts.render import DatasetRender, RenderCameraPath, RenderInterpolated
from PIL import Image
from tiny_runs import model_of, save_restorer, train, training_config

from nifi_ns import compress
from nifi_ns.compress import decode
from nifi_ns.errors import NifiError
from nifi_ns.media import Video
from nifi_ns.plugin.data.dataset_views import DatasetViews, view_of
from nifi_ns.plugin.runs import load_run
from nifi_ns.plugin.splat.model import NifiSplatModel
from nifi_ns.restore import Restorer

LAZY = ("rgb_uncompressed", "rgb_referenced", "rgb_restored", "restoration_change")


@pytest.fixture(scope="module")
def model(trained: Trainer) -> NifiSplatModel:
    return model_of(trained).eval()


@pytest.fixture(scope="module")
def camera(trained: Trainer) -> Cameras:
    dataset = trained.pipeline.datamanager.eval_dataset
    assert dataset is not None
    return dataset.cameras[0:1]


def test_training_ends_with_a_scene_file_of_the_target_size(trained: Trainer) -> None:
    size = (trained.base_dir / "nifi" / "4KB" / "scene.nifi").stat().st_size
    assert 0.98 * 4000 <= size <= 4000


def test_the_model_renders_what_the_file_decodes_to(trained: Trainer, model: NifiSplatModel) -> None:
    decoded = decode((trained.base_dir / "nifi" / "4KB" / "scene.nifi").read_bytes())
    for name, value in vars(decoded.with_sh_degree(model.config.sh_degree)).items():
        torch.testing.assert_close(getattr(model.splats, name), value)
    assert len(model.uncompressed_splats) > len(decoded)


def test_outputs_are_computed_when_they_are_read(model: NifiSplatModel, camera: Cameras) -> None:
    outputs = model.get_outputs_for_camera(camera)
    assert set(LAZY) < set(outputs)
    for name in LAZY:
        assert callable(dict.__getitem__(outputs, name))
    height, width, _ = outputs["rgb"].shape
    assert outputs["rgb_uncompressed"].shape == outputs["rgb_referenced"].shape == (height, width, 3)
    assert callable(dict.__getitem__(outputs, "rgb_restored"))


def test_uncompressed_and_compressed_views_differ(model: NifiSplatModel, camera: Cameras) -> None:
    outputs = model.get_outputs_for_camera(camera)
    assert (outputs["rgb"] - outputs["rgb_uncompressed"]).abs().mean() > 1e-3


def test_rgb_equals_splatfactos_render(model: NifiSplatModel, camera: Cameras) -> None:
    rgb, depth = model.render_view(view_of(camera), model.splats)
    outputs = model.get_outputs_for_camera(camera)
    torch.testing.assert_close(outputs["rgb"], rgb, atol=1e-5, rtol=0)
    covered = outputs["accumulation"] > 0.5
    torch.testing.assert_close(outputs["depth"][covered], depth[covered], atol=1e-4, rtol=1e-4)


def test_expected_depth_is_zero_where_nothing_is_rendered(model: NifiSplatModel, camera: Cameras) -> None:
    middle = model.means.detach().median(dim=0).values
    small = OrientedBox(R=torch.eye(3), T=middle, S=torch.full((3,), 0.3))
    outputs = model.get_outputs_for_camera(camera, obb_box=small)
    model.set_crop(None)
    nothing = outputs["accumulation"] == 0
    assert nothing.any() and not nothing.all()
    assert (outputs["depth"][nothing] > 0).all()  # splatfacto fills in the view's largest depth
    depth = model.expected_depth(view_of(camera), outputs)
    assert depth is not None and (depth[nothing] == 0).all()
    torch.testing.assert_close(depth[~nothing], outputs["depth"][~nothing])


def test_a_crop_box_also_applies_to_the_uncompressed_view(model: NifiSplatModel, camera: Cameras) -> None:
    nowhere = OrientedBox(R=torch.eye(3), T=torch.full((3,), 1e3), S=torch.ones(3))
    outputs = model.get_outputs_for_camera(camera, obb_box=nowhere)
    background = model.background_color
    for name in ("rgb", "rgb_uncompressed"):
        torch.testing.assert_close(outputs[name], background.expand_as(outputs[name]))
    model.set_crop(None)


def test_torch_is_not_left_patched(model: NifiSplatModel, camera: Cameras) -> None:
    before = torch.Tensor.cuda
    model.get_outputs_for_camera(camera)
    assert torch.Tensor.cuda is before
    assert type(camera.get_intrinsics_matrices()) is torch.Tensor


def test_without_a_restorer_the_command_ends_with_one_line(model: NifiSplatModel, camera: Cameras) -> None:
    with pytest.raises(SystemExit, match="error: no restorer: train one with ns-nifi-train"):
        model.get_outputs_for_camera(camera)["rgb_restored"]


def test_the_datamanager_returns_photo_and_render(trained: Trainer, model: NifiSplatModel) -> None:
    camera, batch = trained.pipeline.datamanager.next_train(0)
    assert isinstance(camera, Cameras)
    assert callable(dict.__getitem__(batch, "render"))
    assert batch["render"].shape == batch["image"].shape
    torch.testing.assert_close(batch["render"], model.get_outputs_for_camera(camera)["rgb"])


def test_views_have_splatfactos_cameras_and_photos(trained: Trainer) -> None:
    datamanager = trained.pipeline.datamanager
    assert isinstance(datamanager, FullImageDatamanager)
    views, dataset = DatasetViews(datamanager, "eval"), datamanager.eval_dataset
    assert len(views) == len(dataset)
    view, camera = views[0], dataset.cameras[0]
    torch.testing.assert_close(view.centre, camera.camera_to_worlds[:, 3])
    assert view.image is not None
    torch.testing.assert_close(view.image, dataset.get_image_float32(0)[..., :3])
    assert view.name == Path(dataset.image_filenames[0]).stem


def test_a_run_opens_with_the_config_beside_its_scene_file(run_config: Path, model: NifiSplatModel) -> None:
    for path in (run_config, run_config.parent / "nifi" / "4KB" / "config.yml"):
        run = load_run(path)
        assert run.scene_file == run_config.parent / "nifi" / "4KB" / "scene.nifi"
        torch.testing.assert_close(run.model.splats.means, model.splats.means)
        torch.testing.assert_close(run.uncompressed.means, model.uncompressed_splats.means)


@pytest.mark.parametrize("content", [None, "not: a config", "]["])
def test_a_file_that_is_no_config_is_refused_in_one_line(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(NifiError, match=r"config\.yml"):
        load_run(path)


def test_a_missing_scene_file_is_refused_in_one_line(run_config: Path, tmp_path: Path) -> None:
    config = yaml.load(run_config.read_text(), Loader=yaml.Loader)
    config.pipeline.model.scene_file = tmp_path / "gone.nifi"
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump(config))
    with pytest.raises(NifiError, match=r"no scene file .*gone\.nifi"):
        load_run(path)


def test_a_run_without_a_checkpoint_is_refused_in_one_line(tiny_capture: Path, tmp_path: Path) -> None:
    config = training_config(tiny_capture, tmp_path)
    config.save_config()
    with pytest.raises(NifiError, match="no checkpoint in"):
        load_run(config.get_base_dir() / "config.yml")


def test_ns_eval_reports_compressed_and_referenced(run_config: Path, tmp_path: Path) -> None:
    ComputePSNR(load_config=run_config, output_path=tmp_path / "eval.json").main()
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert {"psnr", "ssim", "gmsd", "referenced_psnr", "referenced_ssim"} <= set(results)
    assert "lpips" not in results  # its weights are missing, so it is not reported


@pytest.mark.parametrize(
    "names", [["rgb", "rgb_uncompressed", "rgb_referenced"], ["rgba"], ["rgb", "depth", "accumulation"]]
)
def test_ns_render_writes_every_output(
    run_config: Path, tmp_path: Path, names: list[str], model: NifiSplatModel, camera: Cameras
) -> None:
    output = tmp_path / "path.mp4"
    RenderInterpolated(
        load_config=run_config,
        output_path=output,
        rendered_output_names=names,
        interpolation_steps=1,
        output_format="images",
        image_format="png",
    ).main()
    (frame,) = (tmp_path / "path").glob("*.png")
    shown = np.split(pixels(frame), len(names), axis=1)
    outputs = model.get_outputs_for_camera(camera)  # the path begins at the first held-out photo's camera
    for name, picture in zip(names, shown, strict=True):
        wanted = model.get_rgba_image(outputs) if name == "rgba" else outputs[name]
        if wanted.shape[-1] == 1:  # drawn with a colour map
            assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
        else:
            assert np.abs(picture - 255 * wanted.numpy()).max() < 1.1


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(float)


def test_ns_render_dataset_writes_every_output_under_its_photo_name(
    run_config: Path, tmp_path: Path, trained: Trainer, model: NifiSplatModel
) -> None:
    names = ["rgb", "gt-rgb", "rgb_referenced"]
    DatasetRender(load_config=run_config, output_path=tmp_path, rendered_output_names=names, image_format="png").main()
    dataset = trained.pipeline.datamanager.eval_dataset
    assert dataset is not None
    for i, photo in enumerate(dataset.image_filenames):
        outputs = model.get_outputs_for_camera(dataset.cameras[i : i + 1])
        for name in names:
            (file,) = (tmp_path / "test" / name).rglob(f"{photo.stem}.png")
            wanted = dataset.get_image_float32(i) if name == "gt-rgb" else outputs[name]
            assert np.abs(pixels(file) - 255 * wanted.numpy()).max() < 1.1


def test_ns_render_follows_a_camera_path(run_config: Path, tmp_path: Path, camera: Cameras) -> None:
    pose = torch.eye(4)
    pose[:3] = camera.camera_to_worlds[0]
    frame = {"camera_to_world": pose.flatten().tolist(), "fov": 50, "aspect": 1.5}
    path = tmp_path / "path.json"
    document = {"camera_type": "perspective", "render_height": 40, "render_width": 60, "seconds": 1}
    path.write_text(json.dumps({**document, "camera_path": [frame, frame]}))
    video = tmp_path / "path.mp4"
    RenderCameraPath(load_config=run_config, camera_path_filename=path, output_path=video).main()
    shapes = [picture.shape for picture in Video(video).frames()]
    assert shapes == [(40, 60, 3)] * 2


def test_an_antialiased_run_is_compressed_antialiased(
    tiny_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    measure = compress.measure_importance

    def spy(*args: Any, **kwargs: Any) -> Any:
        measured.append(kwargs["antialiased"])
        return measure(*args, **kwargs)

    monkeypatch.setattr(compress, "measure_importance", spy, raising=False)
    trainer = train(training_config(tiny_capture, tmp_path, rasterize_mode="antialiased"))
    assert measured and all(measured)
    assert compress.info((trainer.base_dir / "nifi" / "4KB" / "scene.nifi").read_bytes()).antialiased


@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_both_strategies_densify_up_to_the_limit(strategy: str, tiny_capture: Path, tmp_path: Path) -> None:
    model = {"strategy": strategy, "max_gaussians": 900, "densify_grad_thresh": 1e-5}
    config = training_config(tiny_capture, tmp_path, compress=False, **model)
    config.max_num_iterations = 31
    model = model_of(train(config))
    grown, seeds = model.num_points, len(model.seed_points[0])  # type: ignore[index]
    assert grown != seeds
    assert grown <= 900


@pytest.fixture(scope="module")
def restorer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_restorer(tmp_path_factory.mktemp("restorer"))


@pytest.fixture
def restoring(run_config: Path, restorer_folder: Path) -> NifiSplatModel:
    """Return the run's model, opened again with a restorer."""
    model = load_run(run_config).model
    model.config.restorer = restorer_folder
    return model


def test_a_restorer_restores_and_tints_its_change(
    restoring: NifiSplatModel, camera: Cameras, restorer_folder: Path
) -> None:
    outputs = restoring.get_outputs_for_camera(camera)
    expected = Restorer.from_pretrained(restorer_folder, "cpu")(outputs["rgb"])
    torch.testing.assert_close(outputs["rgb_restored"], expected)
    change = (expected - outputs["rgb"]).abs().mean(-1, keepdim=True)
    torch.testing.assert_close(outputs["restoration_change"], change)
    assert change.mean() > 1e-3


def test_a_restorer_that_attends_to_photos_gets_the_nearest(
    restoring: NifiSplatModel, camera: Cameras, restorer_folder: Path
) -> None:
    restorer = Restorer.from_pretrained(restorer_folder, "cpu")
    restorer.settings = replace(restorer.settings, attended_photos=2)
    restoring.view_restorer.use(restorer)
    outputs = restoring.get_outputs_for_camera(camera)
    view = view_of(camera)
    photos = restoring.view_restorer.request(view, outputs["rgb"], restoring.expected_depth(view, outputs)).photos(2)
    others = [other.image for other in restoring.train_views or () if other.image is not None]
    assert len(photos) == 2 and all(any(torch.equal(photo, other) for other in others) for photo in photos)
    alone, expected = restorer(outputs["rgb"]), restorer(outputs["rgb"], attended_photos=photos)
    assert torch.allclose(outputs["rgb_restored"], expected, atol=1e-5) and not torch.allclose(alone, expected)
