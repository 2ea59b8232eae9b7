import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nifi_ns import metrics
from nifi_ns.distributions import sliced_wasserstein, spectrum_distance

DISTANCES = (sliced_wasserstein, spectrum_distance)


def texture(seed: int, size: int = 96, contrast: float = 0.1) -> Tensor:
    """Return smoothed noise, like grass: seeds give different pieces of the same meadow."""
    noise = torch.randn(1, 3, size + 4, size + 4, generator=torch.Generator().manual_seed(seed))
    return (0.5 + contrast * F.avg_pool2d(noise, 3, 1)[..., 1:-1, 1:-1] * 3).clamp(0, 1)


def blurred(image: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(image, [3] * 4, mode="reflect"), 7, 1)


@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_images_have_distance_zero(distance) -> None:
    assert distance(texture(0), texture(0)) == 0


@pytest.mark.parametrize("distance", DISTANCES)
def test_plausible_detail_scores_better_than_a_blur_of_lower_pixel_error(distance) -> None:
    photo, other, blur = texture(0), texture(1), blurred(texture(0))
    assert (other - photo).square().mean() > (blur - photo).square().mean()
    assert distance(other, photo) < distance(blur, photo) / 4


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_grow_with_lost_and_with_added_detail(distance) -> None:
    photo, blur = texture(0), blurred(texture(0))
    lost = [distance(photo.lerp(blur, part), photo) for part in (0.3, 0.6, 1.0)]
    assert lost == sorted(lost) and lost[0] > 0
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(5))
    invented = [distance(photo + amount * noise, photo) for amount in (0.05, 0.1, 0.2)]
    assert invented == sorted(invented) and invented[0] > 0


def test_spectra_differ_in_decibels_and_lost_levels_count_0_8() -> None:
    photo = texture(0)
    half = 0.5 + (photo - 0.5) / 2
    assert spectrum_distance(half, photo) == pytest.approx(20 * torch.log10(torch.tensor(2.0)).item(), rel=0.05)
    flat = torch.full_like(photo, 0.5)
    assert sliced_wasserstein(flat, photo) == pytest.approx(0.8, abs=0.05)


def test_distances_are_metrics_of_images_that_are_large_enough() -> None:
    photo, other = (texture(seed)[0].movedim(0, -1) for seed in (0, 1))
    values = metrics.compute(other, photo, names=("swd", "spectrum"))
    assert values["swd"] == sliced_wasserstein(texture(1), texture(0)).item()
    assert metrics.compute(other[:31], photo[:31], names=("swd",)) == {"swd": None}
    assert {"swd", "spectrum"} <= metrics.LOWER_IS_BETTER
