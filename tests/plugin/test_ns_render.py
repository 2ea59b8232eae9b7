"""Every mode of `ns-render`, with restored views beside others, as pictures and as video."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.scripts.render import DatasetRender, RenderCameraPath, RenderInterpolated, SpiralRender
from nerfstudio.utils.rich_utils import ItersPerSecColumn
from PIL import Image

from nifi_ns.plugin.runs import load_run

NAMES = ["rgb", "rgb_restored"]


@pytest.fixture(scope="module")
def exported(run_with_choices: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a camera path with every field that the viewer's render panel writes."""
    dataset = load_run(run_with_choices).pipeline.datamanager.train_dataset
    assert dataset is not None
    poses = []
    for camera in dataset.cameras.camera_to_worlds[:2]:
        pose = torch.eye(4)
        pose[:3] = camera
        poses.append(pose.flatten().tolist())
    fields = {"fov": 50.0, "aspect": 64 / 48}
    keyframes = [{"matrix": pose, **fields, "override_transition_enabled": False} for pose in poses]
    document = {
        "default_fov": 50.0,
        "default_transition_sec": 1.0,
        "keyframes": [{**keyframe, "override_transition_sec": None} for keyframe in keyframes],
        "camera_type": "perspective",
        "render_height": 48,
        "render_width": 64,
        "fps": 2.0,
        "seconds": 1.0,
        "is_cycle": False,
        "smoothness_value": 0.0,
        "camera_path": [{"camera_to_world": pose, **fields} for pose in poses],
        "crop": {
            "crop_center": [0.0, 0.0, 0.0],
            "crop_scale": [9.0, 9.0, 9.0],
            "crop_rot": [0.0, 0.0, 0.0],
            "crop_bg_color": {"r": 38, "g": 42, "b": 55},
        },
    }
    path = tmp_path_factory.mktemp("path") / "exported.json"
    path.write_text(json.dumps(document))
    return path


MODES: dict[str, tuple[Any, dict[str, Any]]] = {
    "interpolate": (RenderInterpolated, {"interpolation_steps": 2}),
    "spiral": (SpiralRender, {"seconds": 0.1}),
    "camera-path": (RenderCameraPath, {}),
}


@pytest.mark.parametrize("output_format", ["images", "video"])
@pytest.mark.parametrize("mode", MODES)
def test_restored_views_are_rendered_beside_others(
    mode: str, output_format: str, run_with_choices: Path, exported: Path, tmp_path: Path
) -> None:
    command, options = MODES[mode]
    if mode == "camera-path":
        options = {**options, "camera_path_filename": exported}
    command(
        load_config=run_with_choices,
        output_path=tmp_path / "out.mp4",
        rendered_output_names=NAMES,
        image_format="png",
        output_format=output_format,
        **options,
    ).main()
    if output_format == "video":
        assert (tmp_path / "out.mp4").stat().st_size > 0
        return
    files = sorted((tmp_path / "out").glob("*.png"))
    assert len(files) >= 2
    rgb, restored = np.split(np.asarray(Image.open(files[0])).astype(float), 2, axis=1)
    assert np.abs(rgb - restored).mean() > 0.5


def test_a_dataset_is_rendered_with_restored_views(run_with_choices: Path, tmp_path: Path) -> None:
    names = ["gt-rgb", *NAMES, "restoration_change"]
    DatasetRender(
        load_config=run_with_choices, output_path=tmp_path, rendered_output_names=names, image_format="png"
    ).main()
    files = [sorted((tmp_path / "test" / name).rglob("*.png")) for name in names]
    assert len(files[0]) == 2
    for view in zip(*files, strict=True):
        photo, rgb, restored, change = (np.asarray(Image.open(file)).astype(float) for file in view)
        assert np.abs(rgb - restored).mean() > 0.5 and np.abs(photo - rgb).mean() > 0.5
        assert len(np.unique(change.reshape(-1, 3), axis=0)) > 2  # drawn with a colour map


def test_the_progress_line_separates_rendering_from_restoring(
    run_with_choices: Path,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    # the state of `ns-render` before a pipeline is built
    monkeypatch.setattr("nerfstudio.scripts.render.ItersPerSecColumn", ItersPerSecColumn)
    RenderCameraPath(
        load_config=run_with_choices,
        camera_path_filename=exported,
        output_path=tmp_path / "out.mp4",
        rendered_output_names=NAMES,
    ).main()
    printed = capsys.readouterr().out
    assert re.search(r"\(rendering [0-9.]+ fps, restoring [0-9.]+ fps\)", printed), printed
