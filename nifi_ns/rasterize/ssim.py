"""Structural similarity (SSIM) as a loss. On a CPU, torch's takes longer than our kernels take to render."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class SSIM(nn.Module):
    """`pytorch_msssim.SSIM(data_range=1.0, size_average=True)`, with compiled kernels on a CPU.

    Example:
        >>> loss = 1 - SSIM()(photo, render)
    """

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean SSIM of images x and y [B, C, H, W] in [0, 1], at least 11 pixels high and wide.

        Uses our kernels for float32 on a CPU if at most one image needs a gradient, and torch otherwise.
        """
        assert x.ndim == 4, f"x: expected [B, C, H, W], got {list(x.shape)}"
        assert x.shape == y.shape, f"y: expected {list(x.shape)}, got {list(y.shape)}"
        assert min(x.shape[2:]) >= 11, f"x: expected at least 11 x 11 pixels, got {list(x.shape)}"
        both = x.requires_grad and y.requires_grad
        if both or any(image.device.type != "cpu" or image.dtype != torch.float32 for image in (x, y)):
            from pytorch_msssim import ssim

            return ssim(x, y, data_range=1.0)
        return _Similarity.apply(*((y, x) if x.requires_grad else (x, y)))  # type: ignore[return-value]


class _Similarity(torch.autograd.Function):
    """Differentiable in the second image."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        from nifi_ns.rasterize import _threads
        from nifi_ns.rasterize._ssim_kernels import TAPS, similarity

        planes = [image.detach().contiguous().flatten(0, 1) for image in (x, y)]
        count, height, width = planes[0].shape
        derivatives = torch.empty(3, count, height - TAPS + 1, width - TAPS + 1)
        parts = _threads.parts(x.numel())
        totals = torch.zeros(len(parts), dtype=torch.float64)
        _threads.run(similarity, parts, *(p.numpy() for p in (*planes, totals, derivatives)))
        ctx.save_for_backward(*planes, derivatives)
        ctx.parts, ctx.shape = parts, x.shape
        return (totals.sum() / derivatives[0].numel()).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_mean: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        from nifi_ns.rasterize import _threads
        from nifi_ns.rasterize._ssim_kernels import similarity_backward

        x, y, derivatives = ctx.saved_tensors
        v_y = torch.empty_like(y)
        scale = float(v_mean) / derivatives[0].numel()
        inputs = (tensor.numpy() for tensor in (x, y, derivatives))
        _threads.run(similarity_backward, ctx.parts, *inputs, scale, v_y.numpy())
        return None, v_y.reshape(ctx.shape)
