"""Perceptual losses: zero for equal crops, larger for worse ones, with useful gradients."""

import pytest
import torch

from nifi_ns.errors import NifiError
from nifi_ns.restore._perceptual import perceptual_loss

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [16, 48, 96, 176])
@pytest.mark.parametrize("metric", ["ms_ssim", "haarpsi", "swd", "texture", "l1"])
def test_losses_measure_distance_at_every_crop_size(metric, size):
    loss = perceptual_loss(metric, CPU)
    clean = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    values = [float(loss(clean + s * noise, clean)) for s in (0.0, 0.02, 0.1)]
    assert values[0] == pytest.approx(0, abs=1e-4)
    assert values[0] < values[1] < values[2]
    image = (clean + 0.1 * noise).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(image, clean), image)
    assert float(loss((image - 1e-3 * gradient / gradient.abs().mean()).detach(), clean)) < values[2]


@pytest.mark.parametrize(("metric", "network"), [("lpips", "lpips_network"), ("dists", "dists_network")])
def test_missing_weights_are_refused_in_one_line(metric, network, monkeypatch):
    monkeypatch.setattr(f"nifi_ns.metrics.{network}", lambda: None)
    with pytest.raises(NifiError, match=rf"weights of {metric.upper()}.*ms_ssim, haarpsi, swd, texture or l1"):
        perceptual_loss(metric, CPU)
