"""Each repair of nerfstudio mends what it says: every test here fails without its repair."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.trainer import Trainer
from nerfstudio.scripts.render import SpiralRender
from nerfstudio.utils import install_checks
from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine
from tiny_runs import model_of, train, training_config

from nifi_ns.errors import CorruptFileError
from nifi_ns.plugin.repairs import seed_points


def test_checkpoints_with_a_numpy_learning_rate_load(tmp_path: Path) -> None:
    path = tmp_path / "step.ckpt"
    torch.save({"schedulers": {"means": {"_last_lr": [np.float64(1.6e-4)]}}}, path)
    assert torch.load(path, weights_only=True)["schedulers"]["means"]["_last_lr"] == [1.6e-4]


def test_the_safe_loader_still_refuses_code(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    path = tmp_path / "step.ckpt"
    torch.save({"pipeline": Harm()}, path)
    with pytest.raises(Exception, match="Unsupported global"):
        torch.load(path, weights_only=True)


def test_seed_points_are_read_without_open3d(tiny_capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)  # importing it raises ImportError, as without libusb
    config = NerfstudioDataParserConfig(data=tiny_capture, load_3D_points=True)
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
    read = seed_points._load_3D_points(None, path, transform, 2.0)  # type: ignore[arg-type]
    assert read is not None
    assert read["points3D_xyz"].tolist() == [[14.0, 14.0, 20.0]]
    assert read["points3D_rgb"].tolist() == [[10, 20, 30]]


def test_a_broken_seed_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "points.ply"
    path.write_bytes(b"ply\nformat")
    with pytest.raises(CorruptFileError, match=r"points\.ply holds no points"):
        seed_points._load_3D_points(None, path, torch.eye(4)[:3], 1.0)  # type: ignore[arg-type]


def test_rendering_finds_an_ffmpeg_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("ffmpeg") is None
    install_checks.check_ffmpeg_installed()
    found = shutil.which("ffmpeg")
    assert found is not None
    assert b"ffmpeg version" in subprocess.run([found, "-version"], capture_output=True, check=True).stdout


def test_a_model_is_built_without_a_network(
    tiny_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    config = training_config(tiny_capture, tmp_path)
    pipeline = config.pipeline.setup(device="cpu")
    assert not [name for name in pipeline.state_dict() if "lpips" in name]


def test_the_view_matrix_needs_no_compiler() -> None:
    from nerfstudio.models.splatfacto import get_viewmat

    assert not hasattr(get_viewmat, "_torchdynamo_orig_callable")


@pytest.mark.parametrize("more_gaussians", [False, True])
def test_training_goes_on_from_a_checkpoint(
    trained: Trainer, tiny_capture: Path, tmp_path: Path, more_gaussians: bool
) -> None:
    config = training_config(tiny_capture, tmp_path, compress=False)
    config.load_dir = trained.checkpoint_dir
    config.max_num_iterations = 5
    if more_gaussians:  # densify at once: the strategy and the optimizers must agree on the number
        more = {"strategy": "mcmc", "stop_split_at": 1000, "max_gaussians": 5000}
        vars(config.pipeline.model).update(more)
    before = model_of(trained).gauss_params["features_dc"].detach().clone()
    after = model_of(train(config)).gauss_params["features_dc"].detach()
    assert len(after) > len(before) if more_gaussians else (after - before).abs().max() > 1e-3


def test_a_spiral_is_rendered(run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "spiral.mp4"
    render = SpiralRender(load_config=run_config, output_path=output, seconds=0.2, output_format="images")
    render.main()
    assert len(list((tmp_path / "spiral").glob("*.jpg"))) == 4


@pytest.mark.parametrize(("flags", "host"), [([], "127.0.0.1"), (["--viewer.websocket-host", "0.0.0.0"], "0.0.0.0")])
def test_ns_viewer_listens_on_this_machine_unless_asked_to(flags: list[str], host: str) -> None:
    import tyro
    from nerfstudio.scripts.viewer.run_viewer import RunViewer

    command = tyro.cli(tyro.conf.FlagConversionOff[RunViewer], args=["--load-config", "config.yml", *flags])
    assert command.viewer.as_viewer_config().websocket_host == host


def test_a_render_thread_does_not_forget_what_it_was_asked_to_draw() -> None:
    thread = RenderStateMachine(viewer=None, viser_scale_ratio=1, client=None)  # type: ignore[arg-type]
    thread.state = "high"
    thread.action(RenderAction("step", camera_state=None))  # type: ignore[arg-type]
    thread.action(RenderAction("static", camera_state=None))  # type: ignore[arg-type]
    assert thread.next_action is not None and thread.next_action.action == "step"


def test_other_methods_viewers_are_as_they_were() -> None:
    assert all_methods["nerfacto"].viewer.websocket_host == ViewerConfig().websocket_host == "0.0.0.0"


def test_both_methods_are_registered() -> None:
    assert {"nifi-splat", "nifi-splat-lite"} <= set(all_methods)


def test_what_the_user_can_mend_is_one_line_and_the_rest_a_trace() -> None:
    def ends(error: str) -> str:
        code = f"""
from nerfstudio.configs.method_configs import all_methods
from nifi_ns.errors import NifiError
raise {error}"""
        done = subprocess.run([sys.executable, "-Wignore", "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        return done.stderr

    assert ends("NifiError('no such size')") == "error: no such size\n"
    assert "Traceback" in ends("ValueError('a bug')")
