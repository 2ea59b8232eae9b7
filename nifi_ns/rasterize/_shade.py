"""Differentiable view-dependent colours of gaussians."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nifi_ns.rasterize import _threads
from nifi_ns.rasterize._project import arrays
from nifi_ns.rasterize._shade_kernels import shade as shade_kernel
from nifi_ns.rasterize._shade_kernels import shade_backward


class _Shade(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, means: Tensor, centres: Tensor, coefficients: Tensor, radii: Tensor, degree: int
    ) -> Tensor:
        colors = torch.zeros(len(centres), len(means), 3)
        parts = _threads.parts(len(means))
        inputs = arrays(means, centres, coefficients)
        _threads.run(shade_kernel, parts, *inputs, radii.numpy(), degree, colors.numpy())
        ctx.save_for_backward(means, centres, coefficients, radii, colors)
        ctx.degree, ctx.parts = degree, parts
        return colors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_colors: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        means, centres, coefficients, radii, colors = ctx.saved_tensors
        v_means, v_coefficients = torch.empty(means.shape), torch.empty(coefficients.shape)
        v_centres = torch.zeros(len(ctx.parts), len(centres), 3, dtype=torch.float64)
        inputs, outputs = arrays(means, centres, coefficients), arrays(colors, v_colors)
        gradients = v_means.numpy(), v_centres.numpy(), v_coefficients.numpy()
        _threads.run(shade_backward, ctx.parts, *inputs, radii.numpy(), ctx.degree, *outputs, *gradients)
        return v_means, v_centres.sum(0).float(), v_coefficients, None, None


def shade(
    degree: int,
    means: Tensor,  # [N, 3]
    viewmats: Tensor,  # [C, 4, 4]
    coefficients: Tensor,  # [N, K, 3] or [C, N, K, 3]
    radii: Tensor,  # [C, N, 2]
) -> Tensor:
    """Return colours [C, N, 3] from SH up to `degree`, differentiably; zero where radii are zero."""
    centres = torch.linalg.inv(viewmats)[:, :3, 3]
    if coefficients.ndim == 3:
        coefficients = coefficients[None]
    return _Shade.apply(means, centres, coefficients, radii, degree)  # type: ignore[return-value]
