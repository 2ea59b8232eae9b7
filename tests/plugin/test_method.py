"""Every `ns-*` command imports the plugin: that must stay cheap, and can break them all."""

import subprocess
import sys

import pytest
from nerfstudio.configs.method_configs import method_configs

from nifi_ns.plugin.model import NifiSplatModelConfig

HEAVY = ("diffusers", "numba", "peft", "transformers", "lpips", "piq", "constriction", "plyfile", "matplotlib.pyplot")


def _modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_registering_imports_nothing_heavy_that_nerfstudio_does_not() -> None:
    # by the route every command takes; the second interpreter has nerfstudio alone
    ours = _modules_after("import nerfstudio.configs.method_configs")
    assert "nifi_ns.method" in ours
    stock = _modules_after("import nerfstudio.engine.trainer, nerfstudio.models.splatfacto, nerfstudio.plugins.types")
    assert not [name for name in HEAVY if name in ours - stock]


@pytest.mark.parametrize("name", ["nifi-splat", "nifi-splat-lite"])
def test_a_preset_compresses_within_its_training(name: str) -> None:
    config = method_configs[name]
    model = config.pipeline.model
    assert isinstance(model, NifiSplatModelConfig)
    assert model.stop_split_at <= model.compression.start_step
    assert model.compression.start_step + model.compression.steps == config.max_num_iterations
    assert set(config.optimizers) >= {"means", "scales", "quats", "opacities", "features_dc", "features_rest"}


@pytest.mark.parametrize("name", ["nifi-splat", "nifi-splat-lite"])
def test_nothing_listens_beyond_this_machine_unless_asked(name: str) -> None:
    assert method_configs[name].viewer.websocket_host == "127.0.0.1"
