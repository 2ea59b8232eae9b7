"""What every test shares: a quiet, repeatable machine, and the real captures where somebody has them."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test must not download weights, nor pass only where they can be had
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tensors are tiny; threads cost more than they bring

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real captures (`fox_quarter`, `bonsai_400_63`, ...) that the variable NIFI_DATA names."""
    folder = os.environ.get("NIFI_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set NIFI_DATA to a folder of captures to run this test")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a generated capture of 10 photos of 64x48, two of them held out."""
    from nifi_ns.capture import CaptureSettings, make_capture

    folder = tmp_path_factory.mktemp("capture")
    return make_capture(folder, CaptureSettings(views=10, width=64, height=48, samples=1, points=400))
