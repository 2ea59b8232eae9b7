"""Finished runs of `ns-train`, opened for evaluation with their splats and views."""

from dataclasses import dataclass
from pathlib import Path

import yaml
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.splatfacto import SplatfactoModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline

from nifi_ns.errors import NifiError
from nifi_ns.plugin.data.dataset_views import DatasetViews
from nifi_ns.plugin.splat.model import NifiSplatModel, NifiSplatModelConfig
from nifi_ns.plugin.splat.pipeline import NifiPipelineConfig
from nifi_ns.plugin.splat.scene_files import save_scene
from nifi_ns.splats import Splats


@dataclass
class Run:
    """A trained run, opened for evaluation."""

    config_path: Path
    """The `config.yml` it was opened from: the run's own, or one beside a scene file."""
    config: TrainerConfig
    pipeline: VanillaPipeline
    model: NifiSplatModel

    @property
    def folder(self) -> Path:
        """The run's own folder, for any of its configs."""
        return self.config.get_base_dir()

    @property
    def scene(self) -> str:
        """Name of the scene: the experiment name."""
        return self.config.experiment_name or self.folder.parent.parent.name

    @property
    def scene_file(self) -> Path | None:
        """The scene file in use, if there is one."""
        return self.model.scene_file

    @property
    def rate(self) -> str:
        """Name of the scene file's size, such as `60KB`; `full` without a scene file."""
        return "full" if self.scene_file is None else self.scene_file.parent.name

    @property
    def uncompressed(self) -> Splats:
        """The splats before compression."""
        return self.model.uncompressed_splats

    @property
    def train_views(self) -> DatasetViews:
        """The views of the training photos."""
        return self._views("train")

    @property
    def eval_views(self) -> DatasetViews:
        """The views of the held-out photos."""
        return self._views("eval")

    def _views(self, split: str) -> DatasetViews:
        datamanager = self.pipeline.datamanager
        assert isinstance(datamanager, FullImageDatamanager)
        return DatasetViews(datamanager, "train" if split == "train" else "eval")

    def save_scene(self, data: bytes, rate: str) -> Path:
        """Write a scene file into the run and return the config that opens it: see `scene_files.save_scene`."""
        return save_scene(self.config, data, rate)


def load_run(config_path: Path) -> Run:
    """Open a run of `splatfacto`, `nifi-splat` or `nifi-splat-lite` from a `config.yml`.

    Raises:
        NifiError: if there is no such config, its method has no gaussians, or its checkpoint or data are missing.
    """
    from nerfstudio.utils.eval_utils import eval_setup

    config = _read_config(config_path)
    checkpoints = config.get_checkpoint_dir()
    if not any(checkpoints.glob("step-*.ckpt")):
        raise NifiError(
            f"no checkpoint in {checkpoints}: run this in the folder where ns-train was started, or train first"
        )
    assert isinstance(config.pipeline.datamanager, FullImageDatamanagerConfig)
    data = config.pipeline.datamanager.data or config.pipeline.datamanager.dataparser.data
    if not data.exists():
        raise NifiError(f"the run's dataset {data} does not exist: run this in the folder where ns-train was started")
    config, pipeline, _, _ = eval_setup(config_path, test_mode="test", update_config_callback=_as_nifi)
    assert isinstance(pipeline, VanillaPipeline)
    assert isinstance(pipeline.model, NifiSplatModel)
    return Run(config_path, config, pipeline, pipeline.model)


def _read_config(path: Path) -> TrainerConfig:
    if not path.is_file():
        raise NifiError(f"no such config: {path}; ns-train writes a config.yml to outputs/SCENE/METHOD/TIMESTAMP")
    try:
        # nerfstudio's own loader for this file. It can construct any class: open only configs that you trust
        config = yaml.load(path.read_text(), Loader=yaml.Loader)
    except (yaml.YAMLError, UnicodeDecodeError, ImportError, AttributeError) as error:
        raise NifiError(f"{path} is not a nerfstudio config.yml: {' '.join(str(error).split())}") from error
    if not isinstance(config, TrainerConfig):
        raise NifiError(f"{path} is not a nerfstudio config.yml")
    if not isinstance(config.pipeline.model, SplatfactoModelConfig):
        raise NifiError(f"{path} is a run of {config.method_name}: only splatfacto and nifi-splat runs have gaussians")
    if not isinstance(config.pipeline.datamanager, FullImageDatamanagerConfig):
        raise NifiError(f"{path}: expected a datamanager of full images, like splatfacto's")
    return config


def _as_nifi(config: TrainerConfig) -> TrainerConfig:
    """Convert the config of a stock splatfacto run to this project's model; all other settings are kept."""
    model = config.pipeline.model
    if not isinstance(model, NifiSplatModelConfig):
        fields = {name: value for name, value in vars(model).items() if name != "_target"}
        config.pipeline = NifiPipelineConfig(
            datamanager=config.pipeline.datamanager,  # pyright: ignore[reportArgumentType]
            model=NifiSplatModelConfig(**fields),
        )
    return config
