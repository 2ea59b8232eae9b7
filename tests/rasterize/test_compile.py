"""Several processes can compile the kernels at once; see also `tests/test_compiled.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_processes_can_compile_at_the_same_time(tmp_path: Path) -> None:
    code = (
        "import torch; from raster_scenes import *; from nifi_ns.rasterize import rasterization;"
        "print({k: v.double().sum().item() for k, v in draw(rasterization, random_scene(90)).items()})"
    )
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[1] / "support"),
    }
    run = [sys.executable, "-c", code]
    together = [subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {process.communicate()[0] for process in together}
    printed.add(subprocess.run(run, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert len(printed) == 1
    assert "image" in printed.pop()
    assert any(tmp_path.rglob("*.nbi"))
