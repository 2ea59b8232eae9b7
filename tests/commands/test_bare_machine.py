"""`ns-nifi-export` and `ns-nifi-process-data` on a machine without ffmpeg and open3d's system libraries."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from nerfstudio.engine.trainer import Trainer
from PIL import Image
from tiny_runs import model_of

from nifi_ns import formats
from nifi_ns.plugin.repairs import late_open3d

BARE = Path(__file__).parents[1] / "support" / "bare"


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command like its script, with only Python on PATH and a broken open3d."""
    code = f"from {module} import entrypoint; entrypoint()"
    paths = os.pathsep.join((str(BARE), *sys.path[1:]))
    environment = {**os.environ, "PYTHONPATH": paths, "PATH": str(Path(sys.executable).parent)}
    words = [sys.executable, "-Wignore", "-c", code, *map(str, arguments)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def test_a_scene_file_is_exported(trained: Trainer, run_config: Path, tmp_path: Path) -> None:
    done = run(
        "nifi_ns.commands.export", "gaussian-splat", "--load-config", run_config, "--output-dir", tmp_path / "exported"
    )
    assert done.returncode == 0, done.stderr
    exported, shown = formats.load(tmp_path / "exported" / "splat.ply"), model_of(trained).splats
    assert len(exported) == len(shown)
    torch.testing.assert_close(exported.means, shown.means)
    torch.testing.assert_close(exported.opacities, shown.opacities)


def test_photos_become_a_capture(tiny_capture: Path, tmp_path: Path) -> None:
    photos, output = tmp_path / "photos", tmp_path / "capture"
    shutil.copytree(tiny_capture / "images", photos)
    count = len(list(photos.iterdir()))
    done = run(
        "nifi_ns.commands.process_data",
        *("images", "--data", photos, "--output-dir", output, "--num-downscales", 1),
        *("--skip-colmap", "--colmap-cmd", "true"),  # the test runs without COLMAP
    )
    assert done.returncode == 0, done.stdout + done.stderr
    copies, halves = sorted((output / "images").iterdir()), sorted((output / "images_2").iterdir())
    assert len(copies) == len(halves) == count
    assert Image.open(copies[0]).size == (64, 48) and Image.open(halves[0]).size == (32, 24)


@pytest.fixture
def without_open3d(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove open3d from the imported modules, and restore them afterwards."""
    for name in ("open3d", "open3d.io"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        del sys.modules[name]


@pytest.mark.usefixtures("without_open3d")
def test_using_open3d_raises_the_reason_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BARE)
    late_open3d.install()
    import open3d as o3d

    assert not hasattr(o3d, "__file__")  # `inspect` reads it from every module
    with pytest.raises(OSError, match="libusb"):
        _ = o3d.io


@pytest.mark.usefixtures("without_open3d")
def test_open3d_is_imported_on_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open3d").mkdir()
    (tmp_path / "open3d" / "__init__.py").write_text("from open3d import io\n")
    (tmp_path / "open3d" / "io.py").write_text("def read(): return 'points'\n")
    monkeypatch.syspath_prepend(tmp_path)
    late_open3d.install()
    o3d: Any = import_module("open3d")
    assert "open3d.io" not in sys.modules
    assert import_module("open3d.io") is o3d.io and o3d.io.read() == "points"


@pytest.mark.parametrize("command", ["exporter", "process_data"])
def test_nerfstudios_own_command_still_fails_without_open3d(command: str) -> None:
    """If this fails, upstream imports open3d late: remove the repair and our two commands."""
    done = run(f"nerfstudio.scripts.{command}", "--help")
    assert done.returncode == 1 and "OSError: libusb-1.0.so.0" in done.stderr
