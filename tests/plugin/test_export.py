"""`ns-export gaussian-splat`, which needs the system's libraries of open3d to be imported at all."""

from pathlib import Path

import pytest
import torch
from nerfstudio.engine.trainer import Trainer
from tiny_runs import model_of

from nifi_ns.splats import Splats


def test_ns_export_writes_what_the_scene_file_decodes_to(trained: Trainer, run_config: Path, tmp_path: Path) -> None:
    try:
        from nerfstudio.scripts.exporter import ExportGaussianSplat
    except ImportError as error:
        pytest.skip(f"open3d cannot be imported here: {error}")
    ExportGaussianSplat(load_config=run_config, output_dir=tmp_path).main()
    exported, shown = Splats.load_ply(tmp_path / "splat.ply"), model_of(trained).splats
    assert len(exported) == len(shown)
    torch.testing.assert_close(exported.means, shown.means)
    torch.testing.assert_close(exported.opacities, shown.opacities)
