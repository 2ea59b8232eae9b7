"""Kernels compile where Numba can keep nothing, and where several processes compile at once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nifi_ns.rasterize._compile import f1, kernel


def _double(values, factor):
    for i in range(len(values)):
        values[i] *= factor


def test_without_a_place_for_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import types
    from numba.core.caching import CacheImpl

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    values = np.ones(3, np.float32)
    kernel(f1, types.float64)(_double)(values, 2.0)
    assert values.tolist() == [2, 2, 2]


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(Exception, match=r"(?i)types|signature|arguments"):
        kernel(f1)(_double)


@pytest.mark.slow
def test_processes_that_compile_at_once(tmp_path: Path) -> None:
    code = (
        "import torch; from raster_scenes import *; from nifi_ns.rasterize import rasterization;"
        "print({k: v.double().sum().item() for k, v in draw(rasterization, random_scene(90)).items()})"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    run = [sys.executable, "-c", code]
    together = [subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {process.communicate()[0] for process in together}
    printed.add(subprocess.run(run, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert len(printed) == 1
    assert "image" in printed.pop()
    assert any(tmp_path.rglob("*.nbi"))
