"""Degradations of clean photos: their effect grows with the strength and is the same for the same seed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nifi_ns import proxy
from nifi_ns.errors import NifiError
from nifi_ns.proxy import DEGRADATIONS, Degradation, ProxySettings, degrade


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """Return a photo [80, 96, 3] with smooth, striped and noisy parts and a hard edge."""
    generator = torch.Generator().manual_seed(3)
    ground = F.interpolate(torch.rand(1, 3, 4, 5, generator=generator), (80, 96), mode="bicubic")[0].movedim(0, -1)
    x = torch.arange(96)[None, :, None]
    noise = 0.4 * (torch.rand(80, 96, 1, generator=generator) - 0.5) * (x > 64)
    return (ground * 0.6 + 0.2 + 0.15 * torch.sin(x * 1.1) * (x < 40) + noise).clamp(0, 1)


def psnr(image: Tensor, photo: Tensor) -> float:
    return float(-10 * (image - photo).square().mean().log10())


def fine(image: Tensor) -> float:
    """Return the energy of differences between neighbouring pixels."""
    return float(image.diff(dim=0).square().mean() + image.diff(dim=1).square().mean())


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_degradations_grow_with_strength_and_depend_only_on_the_seed(name, photo):
    apply = getattr(proxy, name)
    means = []
    for strength in (0.25, 0.5, 1.0):
        images = [apply(photo, strength, rng(seed)) for seed in range(4)]
        assert torch.equal(images[0], apply(photo, strength, rng(0)))
        assert not torch.equal(images[0], images[1]) or name == "jpeg"  # has only two random choices
        assert all(image.shape == photo.shape and image.dtype == photo.dtype for image in images)
        assert all(image.min() >= 0 and image.max() <= 1 and not image.requires_grad for image in images)
        means.append(sum(psnr(image, photo) for image in images) / 4)
    assert 45 > means[0] > means[1] + 0.3 > means[2] + 0.6 > 10


def test_blotches_are_smooth_but_keep_edges_better_than_a_blur_of_equal_error(photo):
    edge = torch.full((64, 64, 3), 0.2)
    edge[:, 32:] = 0.8
    image = proxy.blotches(edge, 0.5, rng(0))
    slope = image.mean(dim=(0, 2)).diff().max()
    error = psnr(image, edge)
    blurs = [proxy.blur(edge, s, rng(0)) for s in np.linspace(0.05, 2, 40)]
    blurred = next(b for b in blurs if psnr(b, edge) < error)
    assert slope > 1.2 * blurred.mean(dim=(0, 2)).diff().max()
    assert fine(proxy.blotches(photo, 1.0, rng(0))) < 0.5 * fine(photo)


def test_blotches_of_a_flat_photo_are_visible_but_weak(photo):
    image = proxy.blotches(torch.full((48, 48, 3), 0.5), 1.0, rng(0))
    assert 0 < (image - 0.5).abs().max() < 0.15


@pytest.mark.parametrize("name", ["blur", "downsample"])
def test_blur_and_downsampling_remove_only_fine_detail(name, photo):
    image = getattr(proxy, name)(photo, 0.8, rng(1))
    assert fine(image) < 0.3 * fine(photo)
    coarse, ground = (F.avg_pool2d(i.movedim(-1, 0), 16) for i in (image, photo))
    assert (coarse - ground).abs().max() < 0.06


def test_quantising_leaves_few_values_at_equal_steps(photo):
    image = proxy.quantize(photo, 1.0, rng(0))
    for channel in range(3):
        values = image[..., channel].unique()
        inner = values[(values > 0) & (values < 1)]
        assert len(inner) <= 12 and torch.allclose(inner.diff(), torch.tensor(1 / 11), atol=1e-5)
    assert (image - photo).abs().max() <= 0.5 / 11 + 1e-5


def test_jpeg_leaves_blocks_of_eight_pixels(photo):
    image = proxy.jpeg(photo, 1.0, rng(0))
    steps = image.mean(dim=-1).diff(dim=1).abs().mean(dim=0)
    at_borders = steps[7::8].mean()
    within = torch.cat([steps[i::8] for i in (1, 3, 5)]).mean()
    before = photo.mean(dim=-1).diff(dim=1).abs().mean(dim=0)
    assert at_borders / within > 1.3 * before[7::8].mean() / torch.cat([before[i::8] for i in (1, 3, 5)]).mean()


def test_a_mix_has_at_least_one_of_the_listed_degradations_and_no_other(photo, monkeypatch):
    seen: list[set[str]] = []
    for name in DEGRADATIONS:
        monkeypatch.setitem(proxy._APPLY, name, lambda photo, strength, rng, name=name: seen[-1].add(name) or photo)
    choices: list[tuple[Degradation, ...]] = [DEGRADATIONS, ("jpeg", "blur"), ("quantize",)]
    for names in choices:
        seen.clear()
        for seed in range(40):
            seen.append(set())
            degrade(photo, 0.5, rng(seed), names)
        assert all(seen) and set().union(*seen) == set(names)
        assert "blotches" not in names or all("blotches" in kinds for kinds in seen)
        assert len({frozenset(kinds) for kinds in seen}) > 1 or len(names) == 1


def test_a_mix_grows_with_strength(photo):
    means = [np.mean([psnr(degrade(photo, s, rng(seed)), photo) for seed in range(8)]) for s in (0.25, 0.5, 1.0)]
    assert means[0] > means[1] + 0.5 > means[2] + 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"strengths": ()},
        {"strengths": (0.5, 1.5)},
        {"strengths": (0.0,)},
        {"strengths": (0.5, 0.5)},
        {"degradations": ()},
        {"max_side": 8},
        {"seed": -1},
    ],
)
def test_invalid_settings_are_refused_in_one_line(wrong):
    with pytest.raises(NifiError, match=f"proxy: {next(iter(wrong))} is .*, expected") as caught:
        ProxySettings(**wrong)
    assert "\n" not in str(caught.value)
