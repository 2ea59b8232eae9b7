"""Backbones in miniature, one of each family."""

from pathlib import Path

import pytest
import torch
from miniatures import FAMILIES, save_difix, save_sd, save_sd3

from nifi_ns.restore import Backbone


@pytest.fixture(scope="session")
def backbone_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A diffusers folder for each family; do not write to them."""
    torch.manual_seed(0)
    folders = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    save_sd3(folders["sd3"])
    save_sd(folders["sd-turbo"], "sd-turbo")
    save_sd(folders["sd2-v"], "sd2-v")
    return folders


@pytest.fixture(scope="session")
def difix_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like nvidia/difix_ref, in miniature; do not write to it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("difix")
    save_difix(folder)
    return folder


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def backbone(backbone_folders: dict[str, Path], family: str) -> Backbone:
    """A freshly loaded miniature of each family."""
    return Backbone.from_pretrained(backbone_folders[family], device="cpu")


@pytest.fixture
def sd3(backbone_folders: dict[str, Path]) -> Backbone:
    """A freshly loaded miniature of SD3."""
    return Backbone.from_pretrained(backbone_folders["sd3"], device="cpu")
