"""Runs of a few dozen steps on the generated capture, on the CPU."""

import shutil
from copy import deepcopy
from pathlib import Path

import torch
import yaml
from nerfstudio.configs.method_configs import all_methods  # first: importing the plugin first would be circular
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils.writer import EVENT_WRITERS, TensorboardWriter

from nifi_ns.plugin.splat.compression_stage import CompressionStageConfig
from nifi_ns.plugin.splat.model import NifiSplatModel, NifiSplatModelConfig


def training_config(data: Path, output: Path, *, compress: bool = True, **model: object) -> TrainerConfig:
    """`nifi-splat-lite` in miniature: 40 steps of training, then 20 of compression to 4 KB, without a viewer."""
    config = deepcopy(all_methods["nifi-splat-lite"])
    config.machine.device_type = "cpu"
    config.output_dir, config.experiment_name, config.timestamp = output, "tiny", "now"
    config.data = config.pipeline.datamanager.data = data
    config.vis = "tensorboard"
    config.logging.local_writer.enable = False
    config.max_num_iterations = 60
    config.steps_per_eval_image = config.steps_per_eval_all_images = 10_000
    settings = config.pipeline.model
    settings.warmup_length, settings.refine_every, settings.stop_split_at = 10, 10, 30  # type: ignore[attr-defined]
    settings.max_gaussians = 600  # type: ignore[attr-defined]
    settings.compression = CompressionStageConfig(  # type: ignore[attr-defined]
        enabled=compress, start_step=40, steps=20, target_size="4KB", stages=2, importance_views=4
    )
    for name, value in model.items():
        setattr(settings, name, value)
    return config


def train(config: TrainerConfig) -> Trainer:
    """`ns-train`, in this process."""
    torch.manual_seed(config.machine.seed)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    for writer in EVENT_WRITERS:
        if isinstance(writer, TensorboardWriter):
            writer.tb_writer.close()  # its thread would write to the run's folder later
    EVENT_WRITERS.clear()  # else the next training would write to this one's log too
    return trainer


def model_of(trainer: Trainer) -> NifiSplatModel:
    """What was trained."""
    model = trainer.pipeline.model
    assert isinstance(model, NifiSplatModel)
    return model


def save_restorer(folder: Path) -> Path:
    """An untrained restorer on the miniature backbone, whose noise changes what it sees."""
    from nifi_ns.diffusion import Backbone
    from nifi_ns.restore import Restorer

    backbone = Backbone.from_pretrained("nifi-tiny", "cpu")
    backbone.add_adapters(rank=2, alpha=2)
    Restorer(backbone).save_pretrained(folder)
    return folder


def copy_run(run: Path, output: Path, data: Path | None = None) -> Path:
    """A finished run again, in `output`, for tests that write to it. Takes and returns a config.yml.

    `data` is a copy of the run's capture, for tests that write there.
    """
    config = _load(run)
    config.output_dir = output
    folder = config.get_base_dir()
    shutil.copytree(run.parent, folder)
    for path in folder.rglob("config.yml"):  # the run's own and one beside each scene file
        config = _load(path)
        config.output_dir = output
        if data is not None:
            config.data = config.pipeline.datamanager.data = data
        model = config.pipeline.model
        assert isinstance(model, NifiSplatModelConfig) and model.scene_file is not None
        model.scene_file = folder / model.scene_file.relative_to(run.parent)
        path.write_text(yaml.dump(config))
    return folder / "config.yml"


def _load(path: Path) -> TrainerConfig:
    config = yaml.load(path.read_text(), Loader=yaml.Loader)
    assert isinstance(config, TrainerConfig)
    return config
