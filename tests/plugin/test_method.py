"""Every `ns-*` command imports the plugin, so importing must stay cheap and must not fail."""

import subprocess
import sys

import pytest
from nerfstudio.configs.method_configs import all_methods

from nifi_ns.plugin.splat.model import NifiSplatModelConfig

HEAVY = {"diffusers", "numba", "peft", "lpips", "piq", "plyfile", "imageio_ffmpeg"}
"""Nerfstudio itself imports transformers, through torchmetrics."""


@pytest.fixture(scope="module")
def registered() -> list[str]:
    """Return whether errors are shown as by default, and the modules loaded once nerfstudio has its methods."""
    code = """
import sys, nerfstudio.configs.method_configs
print(sys.excepthook is sys.__excepthook__, *sys.modules)"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_registering_imports_nothing_heavy(registered: list[str]) -> None:
    assert "nifi_ns.method" in registered
    assert not HEAVY & {*registered}


def test_errors_of_other_methods_are_unchanged(registered: list[str]) -> None:
    assert registered[0] == "True"


@pytest.mark.parametrize("name", ["nifi-splat", "nifi-splat-lite"])
def test_a_preset_compresses_within_its_training(name: str) -> None:
    config = all_methods[name]
    model = config.pipeline.model
    assert isinstance(model, NifiSplatModelConfig)
    assert model.stop_split_at <= model.compression.start_step
    assert model.compression.start_step + model.compression.steps == config.max_num_iterations
    assert set(config.optimizers) >= {"means", "scales", "quats", "opacities", "features_dc", "features_rest"}


@pytest.mark.parametrize("name", ["nifi-splat", "nifi-splat-lite"])
def test_viewers_listen_on_this_machine_only_by_default(name: str) -> None:
    assert all_methods[name].viewer.websocket_host == "127.0.0.1"
