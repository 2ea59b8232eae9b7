"""Distillation: views are restored between iterations, sampled for training, stored, and found by a resumed run."""

import json
from pathlib import Path

import pytest
import torch
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from tiny_runs import model_of, save_restorer, train, training_config

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.media import images_in, read_picture
from nifi_ns.novel_views import between, towards
from nifi_ns.plugin.data.datamanager import NifiDataManager
from nifi_ns.plugin.data.dataset_views import DatasetViews, read_camera_path
from nifi_ns.plugin.distill.distillation import DistillationConfig
from nifi_ns.plugin.distill.generations import CAMERAS_FILE, Generation
from nifi_ns.plugin.runs import load_run
from nifi_ns.plugin.splat.model import NifiSplatModel

KINDS = ("pred", "ref", "fixed", "weight")
STEPS = (10, 30)
COMPRESSION = 40
"""First step of compression in a tiny run, at which the last generation is made."""


def config_with(data: Path, output: Path, distillation: DistillationConfig) -> TrainerConfig:
    config = training_config(data, output)
    config.pipeline.distill = distillation  # type: ignore[attr-defined]
    return config


def manager_of(trainer: Trainer) -> NifiDataManager:
    manager = trainer.pipeline.datamanager
    assert isinstance(manager, NifiDataManager)
    return manager


def folder_of(trainer: Trainer, step: int) -> Path:
    return trainer.base_dir / "nifi" / "distill" / f"step_{step}"


def distilled_at(trainer: Trainer, step: int) -> torch.Tensor | None:
    """Return the restored view that a step trains on; None if it does not."""
    found = manager_of(trainer).distilled_view(step)
    return None if found is None else found[1]["image"]


@pytest.fixture(scope="module")
def seen() -> list[tuple[int, float]]:
    """Return the steps that trained on a restored view, with its weight."""
    return []


@pytest.fixture(scope="module")
def distilled(tiny_capture: Path, tmp_path_factory: pytest.TempPathFactory, seen: list[tuple[int, float]]) -> Trainer:
    """Return a finished run with two generations, and one for its compression stage."""
    plain = NifiSplatModel.get_loss_dict

    def spy(self: NifiSplatModel, outputs: object, batch: dict, metrics_dict: object = None) -> dict[str, torch.Tensor]:
        if "loss_weight" in batch:
            seen.append((self.step, batch["loss_weight"]))
        return plain(self, outputs, batch, metrics_dict)

    fix = DistillationConfig(steps=STEPS, views_per_step=5, share=0.5, weight=0.4, max_change=2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NifiSplatModel, "get_loss_dict", spy)
        return train(config_with(tiny_capture, tmp_path_factory.mktemp("distilled"), fix))


def test_every_generation_is_stored(distilled: Trainer) -> None:
    for step in (*STEPS, COMPRESSION):
        folder = folder_of(distilled, step)
        names = [[path.name for path in images_in(folder / kind)] for kind in KINDS]
        assert names == [[f"{i:03d}.png" for i in range(5)]] * 4
        cameras = json.loads((folder / CAMERAS_FILE).read_text())
        assert cameras["step"] == step and [c["name"] for c in cameras["cameras"]] == [f"{i:03d}" for i in range(5)]
    fixed, pred = (read_picture(folder_of(distilled, 30) / kind / "000.png") for kind in ("fixed", "pred"))
    assert fixed.shape == pred.shape and (fixed != pred).any()
    first, second = (Generation.find([distilled.base_dir], step) for step in STEPS)
    assert first is not None and second is not None
    ends = [DatasetViews(manager_of(distilled), "train")[i] for i in range(8)]
    nearest = [min(float((r.view.centre - v.centre).norm()) for v in ends) for g in (first, second) for r in g.views]
    assert min(nearest) > 1e-3 and nearest[5] > 1.5 * nearest[0]  # the second generation is further away


def test_the_configured_share_of_steps_trains_on_restored_views(
    distilled: Trainer, seen: list[tuple[int, float]]
) -> None:
    steps = [step for step, _ in seen]
    assert {weight for _, weight in seen} == {0.4}
    assert min(steps) >= 10 and 15 <= len(steps) <= 35
    assert any(step >= 45 for step in steps)  # with the quantisers in the loop
    assert steps == [step for step in range(10, 60) if distilled_at(distilled, step) is not None]
    drawn = sum(distilled_at(distilled, step) is not None for step in range(100, 1100))
    assert 450 < drawn < 550


def test_a_generation_replaces_the_one_before(distilled: Trainer) -> None:
    kept = [torch.tensor(read_picture(path)) for path in images_in(folder_of(distilled, COMPRESSION) / "fixed")]
    drawn = [image for step in range(100, 160) if (image := distilled_at(distilled, step)) is not None]
    assert all(any(torch.equal(image, fixed) for fixed in kept) for image in drawn)
    assert len({float(image.float().mean()) for image in drawn}) == 5


def test_compression_trains_on_the_uncompressed_splats_in_every_pixel(distilled: Trainer) -> None:
    training, compression = (Generation.find([distilled.base_dir], step) for step in (30, COMPRESSION))
    assert training is not None and compression is not None
    assert min(int(restored.weights.min()) for restored in training.views) < 100
    model = model_of(distilled).eval()
    for restored in compression.views:
        assert restored.weights.min() == 255
        rgb, _ = model.render_view(restored.view, model.uncompressed_splats)
        assert (rgb - restored.pred / 255).abs().max() < 0.01


def test_a_batch_without_a_cam_idx_has_weights_and_a_render(distilled: Trainer) -> None:
    step = next(step for step in range(100, 160) if distilled_at(distilled, step) is not None)
    model_of(distilled).eval()
    camera, batch = manager_of(distilled).next_train(step)
    assert camera.metadata is None or "cam_idx" not in camera.metadata
    assert batch["mask"].shape == (*batch["image"].shape[:2], 1)
    assert batch["mask"].min() == 1 and batch["render"].shape == batch["image"].shape
    assert (batch["render"] - batch["image"] / 255).abs().mean() < 0.2  # from the same camera


def test_a_resumed_run_uses_the_generation_on_disk(distilled: Trainer, tiny_capture: Path) -> None:
    config = config_with(tiny_capture, distilled.config.output_dir, distilled.config.pipeline.distill)  # type: ignore[attr-defined]
    config.load_dir, config.timestamp = distilled.checkpoint_dir, "resumed"
    config.max_num_iterations = 2
    resumed = train(config)
    assert resumed._start_step == 60
    assert not folder_of(resumed, COMPRESSION).exists()
    for step in range(60, 90):
        again, before = distilled_at(resumed, step), distilled_at(distilled, step)
        assert (again is None) == (before is None)
        assert again is None or before is None or torch.equal(again, before)


def test_weights_affect_the_loss(distilled: Trainer) -> None:
    model = model_of(distilled).eval()
    _, batch = manager_of(distilled).next_eval_image(0)
    outputs = model.get_outputs_for_camera(manager_of(distilled).eval_dataset.cameras[0:1])
    height, width, _ = outputs["rgb"].shape
    photo = {"image": batch["image"]}
    loss = model.get_loss_dict(outputs, photo)["main_loss"]
    torch.testing.assert_close(model.get_loss_dict(outputs, photo | {"loss_weight": 0.25})["main_loss"], 0.25 * loss)
    nothing = photo | {"mask": torch.zeros(height, width, 1)}
    assert model.get_loss_dict(outputs, nothing)["main_loss"] < 1e-6 < loss
    left = torch.zeros(height, width, 1)
    left[:, : width // 2] = 1.0
    assert 1e-6 < model.get_loss_dict(outputs, photo | {"mask": left})["main_loss"] < loss


def test_a_restorer_can_be_the_teacher_and_large_changes_get_no_weight(tiny_capture: Path, tmp_path: Path) -> None:
    restorer = save_restorer(tmp_path / "restorer")
    fix = DistillationConfig(
        steps=(3,), views_per_step=2, teacher="restorer", restorer=restorer, target="held-out", max_change=1e-6
    )
    config = config_with(tiny_capture, tmp_path, fix)
    config.max_num_iterations = 5
    trainer = train(config)
    generation = Generation.find([trainer.base_dir], 3)
    assert generation is not None and len(generation.views) == 2
    for restored in generation.views:
        assert (restored.fixed != restored.pred).any()
        assert restored.weights.float().mean() < 50


def test_a_damaged_generation_is_refused(distilled: Trainer, tmp_path: Path) -> None:
    generation = Generation.find([distilled.base_dir], 30)
    assert generation is not None
    folder = generation.save(tmp_path)
    (folder / CAMERAS_FILE).write_text("{}")
    with pytest.raises(CorruptFileError, match=r"cameras\.json is damaged"):
        Generation.find([tmp_path], 30)
    (folder / CAMERAS_FILE).unlink()
    assert Generation.find([tmp_path], 30) is None


def test_training_on_few_views_keeps_the_held_out_views(tiny_capture: Path, tmp_path: Path, distilled: Trainer) -> None:
    config = training_config(tiny_capture, tmp_path, compress=False)
    config.pipeline.datamanager.max_train_views = 3  # type: ignore[attr-defined]
    config.max_num_iterations = 2
    few = load_run(train(config).base_dir / "config.yml")
    every = manager_of(distilled)
    names = DatasetViews(every, "train").names
    assert few.train_views.names == [names[0], names[4], names[7]]
    assert few.eval_views.names == DatasetViews(every, "eval").names
    torch.testing.assert_close(few.train_views[1].viewmat, DatasetViews(every, "train")[4].viewmat)
    image, same = few.train_views[1].image, DatasetViews(every, "train")[4].image
    assert image is not None and same is not None and torch.equal(image, same)


def test_cameras_move_outward_between_neighbours_and_towards_targets(trained: Trainer) -> None:
    manager = trained.pipeline.datamanager
    assert isinstance(manager, FullImageDatamanager)
    train_views, held_out = (list(DatasetViews(manager, split)) for split in ("train", "eval"))
    near, far = (between(train_views, 6, part) for part in (0.2, 1.0))
    for a, b in zip(near, far, strict=True):
        # the camera is still nearest to the one that it started from
        start = min(train_views, key=lambda v: float((v.centre - a.centre).norm()))
        moved = [float((x.centre - start.centre).norm()) for x in (a, b)]
        assert moved[1] == pytest.approx(5 * moved[0], rel=1e-3)
    assert len({tuple(view.centre.tolist()) for view in far}) == 6
    assert len(between(train_views, 10_000, 0.5)) == 8 * 7 // 2
    for target, there in zip(held_out, towards(held_out, train_views, 1.0), strict=True):
        torch.testing.assert_close(there.viewmat, target.viewmat, atol=1e-5, rtol=1e-5)
        assert there.image is None


def test_a_camera_path_saved_by_the_viewer_is_read(tmp_path: Path) -> None:
    path = tmp_path / "path.json"
    pose = [1.0, 0, 0, 3, 0, 1, 0, 4, 0, 0, 1, 5, 0, 0, 0, 1]
    keys = {"camera_type": "perspective", "render_width": 40, "render_height": 30}
    path.write_text(json.dumps({**keys, "camera_path": [{"camera_to_world": pose, "fov": 60.0}] * 2}))
    cameras = read_camera_path(path)
    assert [camera.name for camera in cameras] == ["path_0000", "path_0001"]
    torch.testing.assert_close(cameras[0].centre, torch.tensor([3.0, 4.0, 5.0]))
    path.write_text("{}")
    with pytest.raises(CorruptFileError, match=r"path\.json is not a camera path"):
        read_camera_path(path)
    with pytest.raises(NifiError, match="no camera path"):
        read_camera_path(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": (20, 10)}, r"distill: steps is \(20, 10\), expected increasing steps of 1 or more"),
        ({"share": 1.0}, "distill: share is 1.0, expected between 0 and 1"),
        ({"outward": 0.0}, "distill: outward is 0.0"),
        ({"weight": 0.0}, "distill: weight is 0.0"),
        ({"teacher": "restorer"}, "distill: restorer is None, expected a path if teacher is restorer, else None"),
        ({"restorer": Path("folder")}, "distill: restorer is folder, expected a path if teacher is restorer"),
    ],
)
def test_a_wrong_setting_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(NifiError, match=message):
        DistillationConfig(**wrong)  # pyright: ignore[reportArgumentType]


def test_missing_inputs_are_reported_before_training(tiny_capture: Path, tmp_path: Path) -> None:
    fix = DistillationConfig(steps=(3,), teacher="restorer", restorer=tmp_path / "none")
    with pytest.raises(NifiError, match="no restorer in"):
        train(config_with(tiny_capture, tmp_path, fix))
    config = config_with(tiny_capture, tmp_path, DistillationConfig(steps=(3,)))
    config.pipeline.datamanager.max_train_views = 1  # type: ignore[attr-defined]
    with pytest.raises(NifiError, match="a single training view"):
        train(config)
    config.pipeline.datamanager.max_train_views = 0  # type: ignore[attr-defined]
    with pytest.raises(NifiError, match="max_train_views is 0"):
        train(config)
    config.pipeline.datamanager.data = tmp_path / "nowhere"
    with pytest.raises(NifiError, match=r"no capture at .*nowhere"):
        train(config)
