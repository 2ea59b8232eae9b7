"""Each repair of nerfstudio works, and is still needed.

Tests that use `repaired` run twice: with the repair, and with upstream's code, which must fail. If upstream's code does
not fail, it was fixed: delete the repair.
"""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio, NerfstudioDataParserConfig
from nerfstudio.engine.trainer import Trainer
from nerfstudio.models import splatfacto
from nerfstudio.scripts.render import SpiralRender
from nerfstudio.utils import install_checks
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine
from tiny_runs import model_of, train, training_config

from nifi_ns.errors import CorruptFileError
from nifi_ns.plugin.repairs import (
    ffmpeg,
    lost_steps,
    rasterization,
    resume,
    seed_points,
    spiral,
    viewmat,
)
from nifi_ns.plugin.splat import model as model_module


@pytest.fixture(params=[True, False], ids=["repaired", "upstream"])
def repaired(request: pytest.FixtureRequest) -> bool:
    return request.param


@contextmanager
def works_only(
    repaired: bool, symptom: type[BaseException] | tuple[type[BaseException], ...], match: str | None = None
) -> Iterator[None]:
    """Expect the block to pass with the repair, and to fail with `symptom` without it."""
    with nullcontext() if repaired else pytest.raises(symptom, match=match):
        yield


def test_checkpoints_load_with_the_safe_loader(run_config: Path, repaired: bool) -> None:
    allowed = torch.serialization.get_safe_globals()
    if not repaired:
        torch.serialization.clear_safe_globals()
    try:
        with works_only(repaired, pickle.UnpicklingError, "numpy"):
            eval_setup(run_config)
    finally:
        torch.serialization.add_safe_globals(allowed)


def test_the_safe_loader_still_refuses_code(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    path = tmp_path / "step.ckpt"
    torch.save({"pipeline": Harm()}, path)
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):
        torch.load(path, weights_only=True)


def test_seed_points_are_read_without_open3d(
    tiny_capture: Path, monkeypatch: pytest.MonkeyPatch, repaired: bool
) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)  # importing it raises ImportError, as without libusb
    if not repaired:
        monkeypatch.setattr(Nerfstudio, "_load_3D_points", seed_points.upstream)
    config = NerfstudioDataParserConfig(data=tiny_capture, load_3D_points=True)
    with works_only(repaired, ImportError, "open3d"):
        metadata = config.setup().get_dataparser_outputs("train").metadata
        points, colours = metadata["points3D_xyz"], metadata["points3D_rgb"]
        assert points.shape == colours.shape
        assert len(points) > 100
        assert points.dtype == torch.float32 and colours.dtype == torch.uint8
        assert colours.float().std() > 1


def test_seed_points_follow_the_transform_and_the_scale(tmp_path: Path) -> None:
    path = tmp_path / "points.ply"
    path.write_text(
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n1 2 3 10 20 30\n"
    )
    transform = torch.tensor([[0.0, 1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7]])
    read = Nerfstudio._load_3D_points(None, path, transform, 2.0)  # type: ignore[arg-type]
    assert read is not None
    assert read["points3D_xyz"].tolist() == [[14.0, 14.0, 20.0]]
    assert read["points3D_rgb"].tolist() == [[10, 20, 30]]


def test_a_damaged_seed_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "points.ply"
    path.write_bytes(b"ply\nformat")
    with pytest.raises(CorruptFileError, match=r"points\.ply holds no readable points"):
        Nerfstudio._load_3D_points(None, path, torch.eye(4)[:3], 1.0)  # type: ignore[arg-type]


def test_rendering_falls_back_to_the_bundled_ffmpeg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repaired: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if not repaired:
        monkeypatch.setattr(install_checks, "check_ffmpeg_installed", ffmpeg.upstream)
    with works_only(repaired, SystemExit):
        install_checks.check_ffmpeg_installed()
        found = shutil.which("ffmpeg")
        assert found is not None
        assert b"ffmpeg version" in subprocess.run([found, "-version"], capture_output=True, check=True).stdout


def test_the_bundled_ffmpeg_leaves_no_folder_behind(tmp_path: Path) -> None:
    code = """
import shutil
from nerfstudio.utils import install_checks
from nifi_ns.plugin.repairs import ffmpeg
ffmpeg.install()
install_checks.check_ffmpeg_installed()
print(shutil.which("ffmpeg"))"""
    environment = {**os.environ, "PATH": "", "TMPDIR": str(tmp_path)}
    words = [sys.executable, "-Wignore", "-c", code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_model_is_built_without_internet_access(
    tiny_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repaired: bool
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    if not repaired:
        monkeypatch.setattr("nifi_ns.plugin.splat.model.without_lpips", nullcontext)
    with works_only(repaired, OSError, "no network"):
        pipeline = training_config(tiny_capture, tmp_path).pipeline.setup(device="cpu")
        assert not [name for name in pipeline.state_dict() if "lpips" in name]


def test_the_view_matrix_needs_no_compiler(repaired: bool) -> None:
    with works_only(repaired, AssertionError):
        function = splatfacto.get_viewmat if repaired else viewmat.upstream
        assert not hasattr(function, "_torchdynamo_orig_callable"), "it would be compiled on its first call"


def test_splats_are_rendered_on_a_cpu(trained: Trainer, monkeypatch: pytest.MonkeyPatch, repaired: bool) -> None:
    if not repaired:
        monkeypatch.setattr(splatfacto, "rasterization", rasterization.upstream)
    camera, _ = trained.pipeline.datamanager.next_train(0)
    assert isinstance(camera, Cameras)
    with works_only(repaired, Exception):
        assert model_of(trained).get_outputs(camera)["rgb"].std() > 0.01


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a machine with a GPU intrinsics may move there")
def test_intrinsics_stay_on_a_cpu(trained: Trainer, monkeypatch: pytest.MonkeyPatch, repaired: bool) -> None:
    dataset = trained.pipeline.datamanager.train_dataset
    assert dataset is not None
    if not repaired:
        monkeypatch.setattr(model_module, "on_own_device", lambda camera: camera)
    with works_only(
        repaired, (RuntimeError, AssertionError), "NVIDIA|CUDA"
    ):  # AssertionError if torch was built without CUDA
        model_of(trained).get_outputs(dataset.cameras[0:1])


@pytest.mark.parametrize(("repaired", "more_gaussians"), [(True, False), (True, True), (False, False)])
def test_training_resumes_from_a_checkpoint(
    trained: Trainer,
    tiny_capture: Path,
    tmp_path: Path,
    more_gaussians: bool,
    monkeypatch: pytest.MonkeyPatch,
    repaired: bool,
) -> None:
    if not repaired:
        monkeypatch.setattr(splatfacto.SplatfactoModel, "load_state_dict", resume.upstream)
    config = training_config(tiny_capture, tmp_path, compress=False)
    config.load_dir = trained.checkpoint_dir
    config.max_num_iterations = 5
    if more_gaussians:  # densify at once: the strategy and the optimisers must agree on the number
        more = {"strategy": "mcmc", "stop_split_at": 1000, "max_gaussians": 5000}
        vars(config.pipeline.model).update(more)
    before = model_of(trained).gauss_params["features_dc"].detach().clone()
    with works_only(repaired, AssertionError):
        after = model_of(train(config)).gauss_params["features_dc"].detach()
        assert len(after) > len(before) if more_gaussians else (after - before).abs().max() > 1e-3


def test_a_spiral_is_rendered(
    run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repaired: bool
) -> None:
    # the state of `ns-render` before a pipeline is built
    monkeypatch.setattr("nerfstudio.scripts.render.VanillaDataManager", VanillaDataManager)
    if not repaired:
        monkeypatch.setattr(spiral, "install", lambda: None)
    output = tmp_path / "spiral.mp4"
    render = SpiralRender(load_config=run_config, output_path=output, seconds=0.2, output_format="images")
    with works_only(repaired, AssertionError):
        render.main()
        assert len(list((tmp_path / "spiral").glob("*.jpg"))) == 4


@pytest.mark.parametrize(("flags", "host"), [([], "127.0.0.1"), (["--viewer.websocket-host", "0.0.0.0"], "0.0.0.0")])
def test_ns_viewer_listens_on_this_machine_by_default(flags: list[str], host: str) -> None:
    import tyro
    from nerfstudio.scripts.viewer.run_viewer import RunViewer

    command = tyro.cli(tyro.conf.FlagConversionOff[RunViewer], args=["--load-config", "config.yml", *flags])
    assert command.viewer.as_viewer_config().websocket_host == host


def test_upstreams_viewer_still_listens_on_all_interfaces() -> None:
    """The default for other methods is unchanged. Once this fails, delete `viewer_host`."""
    assert ViewerConfig().websocket_host == "0.0.0.0"


def test_an_idle_render_thread_keeps_requests_to_render(monkeypatch: pytest.MonkeyPatch, repaired: bool) -> None:
    if not repaired:
        monkeypatch.setattr(RenderStateMachine, "action", lost_steps.upstream)
    thread = RenderStateMachine(viewer=None, viser_scale_ratio=1, client=None)  # type: ignore[arg-type]
    thread.state = "high"
    with works_only(repaired, AssertionError):
        thread.action(RenderAction("step", camera_state=None))  # type: ignore[arg-type]
        thread.action(RenderAction("static", camera_state=None))  # type: ignore[arg-type]
        assert thread.next_action is not None and thread.next_action.action == "step"


def test_an_error_that_the_user_can_fix_is_one_line_and_others_are_traces(
    tiny_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    data = tmp_path / "capture"
    shutil.copytree(tiny_capture, data)
    next(data.glob("*.ply")).write_bytes(b"ply\nformat")
    with pytest.raises(CorruptFileError) as caught:
        training_config(data, tmp_path).pipeline.setup(device="cpu")
    capsys.readouterr()
    sys.excepthook(caught.type, caught.value, caught.tb)
    assert capsys.readouterr().err == f"error: {caught.value}\n"
    try:
        raise ValueError("a bug")
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    assert capsys.readouterr().err.startswith("Traceback")
