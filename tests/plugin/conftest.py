"""A run trained once for all tests of the plugin."""

from pathlib import Path

import pytest
from nerfstudio.engine.trainer import Trainer
from tiny_runs import train, training_config


@pytest.fixture(scope="session")
def trained(tiny_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """The trainer of a finished run."""
    return train(training_config(tiny_capture, tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="session")
def run_config(trained: Trainer) -> Path:
    """The config.yml of a finished run."""
    return trained.base_dir / "config.yml"
