"""A run trained once for all tests of the plugin."""

from pathlib import Path

import pytest
import torch
from nerfstudio.engine.trainer import Trainer
from tiny_runs import copy_run, save_restorer, train, training_config

from nifi_ns.plugin.runs import load_run


@pytest.fixture(scope="session")
def trained(tiny_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """The trainer of a finished run."""
    return train(training_config(tiny_capture, tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="session")
def run_config(trained: Trainer) -> Path:
    """The config.yml of a finished run."""
    return trained.base_dir / "config.yml"


@pytest.fixture(scope="session")
def run_with_choices(trained: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config.yml of a run with two scene files, `4KB` and a smaller `half`, and a restorer."""
    from nifi_ns.compress import PRESETS, encode

    path = copy_run(trained, tmp_path_factory.mktemp("choices"))
    run = load_run(path)
    splats = run.model.splats
    run.save_scene(encode(splats[torch.arange(len(splats) // 2)], PRESETS["mid"]), "half")
    save_restorer(path.parent / "nifi" / "restorer")
    return path
