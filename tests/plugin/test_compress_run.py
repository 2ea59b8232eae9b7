"""`ns-nifi-compress run` compresses a run's splats against its photos."""

from pathlib import Path

import pytest

from nifi_ns.commands.compress import CompressRun
from nifi_ns.compress import CompressionSettings, info
from nifi_ns.plugin.runs import load_run

FAST = CompressionSettings(steps=4, stages=1, importance_views=2)


def test_one_command_writes_several_sizes(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CompressRun(config=own_run, sizes=("2KB", "3KB"), compression=FAST).main()
    folder, printed = own_run.parent / "nifi", capsys.readouterr().out
    for size, most in (("2KB", 2000), ("3KB", 3000)):
        config = folder / size / "config.yml"
        assert (folder / size / "scene.nifi").stat().st_size <= most
        assert load_run(config).scene_file == folder / size / "scene.nifi"
        assert str(config) in printed


def test_a_loss_can_replace_a_size(own_run: Path) -> None:
    before = set((own_run.parent / "nifi").iterdir())
    settings = CompressionSettings(steps=0, importance_views=2, sh_degree=1)
    CompressRun(config=own_run, target_psnr_drop=3.0, compression=settings).main()
    (made,) = set((own_run.parent / "nifi").iterdir()) - before
    data = (made / "scene.nifi").read_bytes()
    assert made.name == f"{len(data) / 1e3:.1f}KB" and info(data).count > 0
