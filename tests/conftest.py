"""What every test shares: a quiet, repeatable machine, and the real captures where somebody has them."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test must not download weights, nor pass only where they can be had
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tensors are tiny; threads cost more than they bring

import pytest
import torch

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import Trainer

    from nifi_ns.diffusion import Backbone


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _process_stays_as_it_was() -> Iterator[None]:
    """No test finds the process as another left it: what our code and others' set is set back."""
    hook, threads, path, environment = sys.excepthook, torch.get_num_threads(), sys.path[:], {**os.environ}
    before = _process()
    yield
    sys.excepthook, sys.path[:] = hook, path
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)
    assert _process() == before, "the test changed its process and left it so"


def _process() -> dict[str, object]:
    """What nothing has a reason to change for good."""
    umask = os.umask(0)
    os.umask(umask)
    torchs = torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()
    return {"umask": umask, "folder": os.getcwd(), "torch": torchs}


_shared: dict[Path, dict[Path, tuple[int, int]]] = {}


def shared(folder: Path) -> Path:
    """`folder`, of which tests only read: one that writes to it fails."""
    _shared[folder] = _files(folder)
    return folder


@pytest.fixture(autouse=True)
def _shared_folders_stay_as_they_were() -> Iterator[None]:
    yield
    for folder, before in _shared.items():
        _shared[folder] = after = _files(folder)
        assert after == before, f"{folder} is shared by tests: write to a copy"


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    files = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in files}


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
    return shared(make_capture(folder, CaptureSettings(views=10, width=64, height=48, samples=1, points=400)))


@pytest.fixture(scope="session")
def backbone_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A diffusers folder for each family."""
    from miniatures import SCHEDULERS, save_sd, save_sd3

    torch.manual_seed(0)
    folders = {family: tmp_path_factory.mktemp(family) for family in SCHEDULERS}
    save_sd3(folders["sd3"])
    save_sd(folders["sd-turbo"], "sd-turbo")
    save_sd(folders["sd2-v"], "sd2-v")
    for folder in folders.values():
        shared(folder)
    return folders


@pytest.fixture(scope="session")
def difix_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like nvidia/difix_ref, in miniature."""
    from miniatures import save_difix

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("difix")
    save_difix(folder)
    return shared(folder)


@pytest.fixture(params=("sd3", "sd-turbo", "sd2-v"))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def backbone(backbone_folders: dict[str, Path], family: str) -> "Backbone":
    """A freshly loaded miniature of each family."""
    from nifi_ns.diffusion import Backbone

    return Backbone.from_pretrained(backbone_folders[family], device="cpu")


@pytest.fixture
def sd3(backbone_folders: dict[str, Path]) -> "Backbone":
    """A freshly loaded miniature of SD3."""
    from nifi_ns.diffusion import Backbone

    return Backbone.from_pretrained(backbone_folders["sd3"], device="cpu")


@pytest.fixture(scope="session")
def trained(tiny_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> "Trainer":
    """The trainer of a finished run."""
    from tiny_runs import train, training_config

    trainer = train(training_config(tiny_capture, tmp_path_factory.mktemp("runs")))
    shared(trainer.base_dir)
    return trainer


@pytest.fixture(scope="session")
def run_config(trained: "Trainer") -> Path:
    """The config.yml of a finished run."""
    return trained.base_dir / "config.yml"


@pytest.fixture
def own_run(run_config: Path, tmp_path: Path) -> Path:
    """The config.yml of a copy of that run, for a test that writes to it."""
    from tiny_runs import copy_run

    return copy_run(run_config, tmp_path / "run")


@pytest.fixture(scope="session")
def run_with_choices(run_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config.yml of a run with two scene files, `4KB` and a smaller `half`, and a restorer."""
    from tiny_runs import copy_run, save_restorer

    from nifi_ns.compress import BITS, encode
    from nifi_ns.plugin.runs import load_run

    path = copy_run(run_config, tmp_path_factory.mktemp("choices"))
    run = load_run(path)
    splats = run.model.splats
    run.save_scene(encode(splats[torch.arange(len(splats) // 2)], BITS["mid"]), "half")
    save_restorer(path.parent / "nifi" / "restorer")
    shared(path.parent)
    return path
