"""Every `ns-*` command imports the plugin: that must stay cheap, and can break them all."""

import subprocess
import sys

import pytest
from nerfstudio.configs.method_configs import all_methods

from nifi_ns.plugin.model import NifiSplatModelConfig

HEAVY = {"diffusers", "numba", "peft", "lpips", "piq", "plyfile", "imageio_ffmpeg"}


def test_registering_imports_nothing_heavy() -> None:
    code = "import sys, nerfstudio.configs.method_configs; print('\\n'.join(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    modules = set(output.split())
    assert "nifi_ns.method" in modules
    assert not HEAVY & modules


@pytest.mark.parametrize("name", ["nifi-splat", "nifi-splat-lite"])
def test_a_preset_compresses_within_its_training(name: str) -> None:
    config = all_methods[name]
    model = config.pipeline.model
    assert isinstance(model, NifiSplatModelConfig)
    assert model.stop_split_at <= model.compression.start_step
    assert model.compression.start_step + model.compression.steps == config.max_num_iterations
    assert set(config.optimizers) >= {"means", "scales", "quats", "opacities", "features_dc", "features_rest"}


@pytest.mark.parametrize("name", ["nifi-splat", "nifi-splat-lite"])
def test_nothing_listens_beyond_this_machine_unless_asked(name: str) -> None:
    assert all_methods[name].viewer.websocket_host == "127.0.0.1"
