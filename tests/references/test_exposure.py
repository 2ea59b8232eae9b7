"""Exposure and white balance of photos relative to their renders."""

import torch
import torch.nn.functional as F

from nifi_ns.references._exposure import fit_gains, shared_gains


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a photo, and a blurred render that differs in a corner: [1, 3, 96, 128] each."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 12, 16, generator=generator)
    photo = F.interpolate(coarse, (96, 128), mode="bicubic").clamp(0, 1) * 0.7 + 0.1
    photo = (photo + 0.05 * torch.randn(photo.shape, generator=generator)).clamp(0, 1)
    render = F.avg_pool2d(photo, 5, 1, 2)
    render[..., :30, :40] = 1 - render[..., :30, :40]
    return photo, render


def test_a_photos_factors_are_found_despite_a_blurred_and_partly_wrong_render() -> None:
    photo, render = pictures()
    factors = torch.tensor([0.85, 1.0, 1.12]).view(1, 3, 1, 1)
    torch.testing.assert_close(fit_gains(photo, render), torch.ones(1, 3, 1, 1), atol=0.025, rtol=0)
    torch.testing.assert_close(fit_gains(photo * factors, render), factors, atol=0.025, rtol=0)


def test_clipped_pixels_are_ignored() -> None:
    photo, render = pictures()
    half = photo.clone()
    half[..., 64:] = 1
    torch.testing.assert_close(
        fit_gains(half * 1.1, render).log(), torch.full((1, 3, 1, 1), 1.1).log(), atol=0.02, rtol=0
    )


def test_factors_are_one_without_comparable_pixels() -> None:
    black = torch.zeros(1, 3, 5, 3)
    torch.testing.assert_close(fit_gains(black, black), torch.ones(1, 3, 1, 1))
    torch.testing.assert_close(fit_gains(black + 1, black), torch.ones(1, 3, 1, 1))


def test_factors_common_to_all_photos_are_kept_and_random_ones_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    chance = (0.08 * torch.randn(8, 3, 1, 1, generator=generator)).exp()
    alike = (0.004 * torch.randn(8, 3, 1, 1, generator=generator)).exp()
    weights = torch.ones(8)
    assert (shared_gains(alike, weights) / alike - 1).abs().max() < 1e-3
    assert (shared_gains(chance, weights) - 1).abs().max() < 0.02
    torch.testing.assert_close(shared_gains(0.7 * alike, weights), 0.7 * alike, atol=1e-3, rtol=0)
    assert (shared_gains(0.7 * chance, weights).mean() - 0.7).abs() < 0.04
    assert shared_gains(chance, torch.zeros(8)).isfinite().all()
