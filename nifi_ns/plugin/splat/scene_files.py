"""Scene files of a run: `<run>/nifi/<size>/scene.nifi`, each beside a `config.yml` that opens the run with it."""

import copy
from pathlib import Path

import yaml
from nerfstudio.engine.trainer import TrainerConfig

from nifi_ns.files import write_bytes, write_text

SCENE_FILE = "scene.nifi"


def save_scene(config: TrainerConfig, data: bytes, rate: str) -> Path:
    """Write a scene file into a run's folder, and the config that opens it.

    Args:
        config: the run's config, with a `NifiSplatModelConfig`.
        data: the encoded scene.
        rate: name of the folder, such as `60KB`.

    Returns:
        `<run>/nifi/<rate>/config.yml`.
    """
    scene_file = config.get_base_dir() / "nifi" / rate / SCENE_FILE
    write_bytes(scene_file, data)
    config = copy.deepcopy(config)
    config.pipeline.model.scene_file = scene_file  # pyright: ignore[reportAttributeAccessIssue]
    config.load_dir = None
    config_path = scene_file.with_name("config.yml")
    write_text(config_path, yaml.dump(config))
    return config_path
