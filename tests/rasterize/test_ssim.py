"""Our SSIM equals pytorch_msssim's, in value and gradient."""

import pytest
import torch
from pytorch_msssim import ssim
from torch import Tensor

from nifi_ns.rasterize.ssim import SSIM


def _images(*shape: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(shape)
    return x, (x + 0.2 * torch.randn(shape)).clamp(0, 1)


@pytest.mark.parametrize("shape", [(1, 3, 40, 61), (2, 1, 11, 11), (1, 4, 12, 150)])
@pytest.mark.parametrize("which", [0, 1])
def test_value_and_gradient(shape: tuple[int, ...], which: int) -> None:
    images = _images(*shape)
    images[which].requires_grad_()
    expected, found = ssim(*images, data_range=1.0), SSIM()(*images)
    assert torch.isclose(found, expected, rtol=1e-5)
    (wanted,), (gradient,) = (torch.autograd.grad(3 * value, images[which]) for value in (expected, found))
    assert (gradient - wanted).norm() <= 1e-5 * wanted.norm()


def test_gradients_of_both_images() -> None:
    images = [image.requires_grad_() for image in _images(1, 3, 20, 20)]
    wanted = torch.autograd.grad(ssim(*images, data_range=1.0), images)
    for gradient, expected in zip(torch.autograd.grad(SSIM()(*images), images), wanted, strict=True):
        assert (gradient - expected).norm() <= 1e-5 * expected.norm()


def test_images_permuted_as_by_splatfacto() -> None:
    """Permuted views of [H, W, 3] are not contiguous."""
    x, y = _images(30, 40, 3)
    turned = [image.permute(2, 0, 1)[None] for image in (x, y)]
    assert torch.isclose(SSIM()(*turned), ssim(*turned, data_range=1.0), rtol=1e-5)
    assert torch.isclose(SSIM()(turned[0], turned[0]), torch.tensor(1.0))


def test_flat_and_black_images() -> None:
    black = torch.zeros(1, 3, 16, 16)
    white = torch.ones(1, 3, 16, 16).requires_grad_()
    found = SSIM()(black, white)
    found.backward()
    assert torch.isclose(found, ssim(black, white, data_range=1.0), atol=1e-6)
    assert white.grad is not None
    assert torch.isfinite(white.grad).all()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(AssertionError, match="y: expected"):
        SSIM()(torch.zeros(1, 3, 20, 20), torch.zeros(1, 3, 20, 21))
    with pytest.raises(AssertionError, match="at least 11"):
        SSIM()(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))
