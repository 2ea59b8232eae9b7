from dataclasses import replace

import pytest
import torch
from splat_scenes import random_splats

from nifi_ns.compress import CompressionSettings, cameras_around, compress_to_loss, info, with_renders
from nifi_ns.compress._rate import _quality
from nifi_ns.errors import NifiError
from nifi_ns.splats import Splats
from nifi_ns.views import View

SETTINGS = CompressionSettings(steps=0, sh_degree=0)


@pytest.fixture(scope="module")
def scene() -> tuple[Splats, list[View]]:
    """Return gaussians and views with noisy photos of them."""
    splats = random_splats(300, 0)
    noise = torch.Generator().manual_seed(0)
    views = []
    for view in with_renders(splats, cameras_around(splats, count=4, size=48)):
        assert view.image is not None
        views.append(replace(view, image=view.image + 0.02 * torch.randn(view.image.shape, generator=noise)))
    return splats, views


@pytest.mark.parametrize("loss", [0.3, 2.0])
def test_the_loss_is_at_most_the_given_one(scene: tuple[Splats, list[View]], loss: float) -> None:
    splats, views = scene
    compressed = compress_to_loss(splats, views, loss, SETTINGS)
    lost = _quality(splats, views, {}) - _quality(compressed.splats, views, {})
    assert 0 < lost <= loss
    assert info(compressed.data).count == len(compressed.splats)


def test_a_greater_loss_makes_a_smaller_file(scene: tuple[Splats, list[View]]) -> None:
    splats, views = scene
    sizes = [len(compress_to_loss(splats, views, loss, SETTINGS).data) for loss in (0.1, 1.0, 5.0)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


def test_fine_tuning_keeps_the_loss_in_a_file_that_is_no_larger(scene: tuple[Splats, list[View]]) -> None:
    splats, views = scene
    tuned = compress_to_loss(splats, views, 1.0, CompressionSettings(steps=40, stages=2, sh_degree=0), progress=False)
    assert _quality(splats, views, {}) - _quality(tuned.splats, views, {}) <= 1.0
    assert len(tuned.data) <= len(compress_to_loss(splats, views, 1.0, SETTINGS).data)


def test_missing_photos_and_impossible_losses_are_refused(scene: tuple[Splats, list[View]]) -> None:
    splats, views = scene
    with pytest.raises(NifiError, match=r"measured against photos, and there are none"):
        compress_to_loss(splats, [], 1.0, SETTINGS)
    with pytest.raises(NifiError, match=r"the loss of PSNR is 0.0 dB, expected more than 0"):
        compress_to_loss(splats, views, 0.0, SETTINGS)
    with pytest.raises(NifiError, match="no file loses at most 1e-09 dB"):
        compress_to_loss(splats, views, 1e-9, SETTINGS)
