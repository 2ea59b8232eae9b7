"""A miniature restorer and its folder."""

from pathlib import Path

import pytest
from miniatures import perturb

from nifi_ns.diffusion import Backbone
from nifi_ns.restore import Restorer


@pytest.fixture
def adapted(sd3: Backbone) -> Backbone:
    sd3.add_adapters(2, 2)
    perturb(sd3)
    return sd3


@pytest.fixture
def restorer(adapted: Backbone) -> Restorer:
    return Restorer(adapted)


@pytest.fixture
def saved(restorer: Restorer, tmp_path: Path) -> Path:
    restorer.training = {"steps": 3}
    restorer.save_pretrained(tmp_path / "restorer")
    return tmp_path / "restorer"
