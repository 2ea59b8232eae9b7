import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HELPER = "from nifi_ns.compiled import compiled\nSTEP = {step}\n\n@compiled()\ndef helper(x):\n    return x + STEP\n"
KERNEL = (
    "import helper\nfrom nifi_ns.compiled import compiled\n\n"
    "@compiled()\ndef kernel(x):\n    return helper.helper(2 * x)\n\n"
    "print(kernel(1), sum(kernel.stats.cache_hits.values()))\n"
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "kernel.py").write_text(KERNEL)
    (sources / "helper.py").write_text(HELPER.format(step=10))
    return sources


def run(sources: Path, **environment: str) -> tuple[int, int]:
    # the kernel's result, and how often its code came from the cache
    result = subprocess.run(
        [sys.executable, sources / "kernel.py"],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    value, hits = result.stdout.split()
    return int(value), int(hits)


@pytest.mark.parametrize("chosen", [False, True])
def test_a_kernel_is_compiled_again_when_a_function_it_calls_changes(sources: Path, tmp_path: Path, chosen: bool):
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache") if chosen else ""}
    assert run(sources, **environment) == (12, 0)
    assert run(sources, **environment) == (12, 1)
    (sources / "helper.py").write_text(HELPER.format(step=20))
    assert run(sources, **environment) == (22, 0)
    cache = tmp_path / "cache" / "nifi_ns" / "sources" if chosen else sources / "__pycache__"
    older, newer = sorted(cache.glob("kernels-*"), key=lambda folder: folder.stat().st_mtime)
    # another installation that shares the cache still finds its own code
    (sources / "helper.py").write_text(HELPER.format(step=10))
    assert run(sources, **environment) == (12, 1)
    # folders not used for a month are removed
    month_ago = time.time() - 31 * 24 * 3600
    os.utime(newer, (month_ago, month_ago))
    assert run(sources, **environment) == (12, 1)
    assert list(cache.glob("kernels-*")) == [older]


def test_kernels_work_without_a_writable_cache(sources: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    assert run(sources, NUMBA_CACHE_DIR=str(tmp_path / "file" / "cache")) == (12, 0)
