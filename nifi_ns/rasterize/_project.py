"""Differentiable projection of gaussians to the image planes of cameras."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nifi_ns.rasterize import _threads
from nifi_ns.rasterize._project_kernels import Cameras, Gaussians, Projected, Settings, project_backward
from nifi_ns.rasterize._project_kernels import project as project_kernel


class Projection(NamedTuple):
    """N gaussians in the image planes of C cameras; zeros where a gaussian is not visible."""

    means2d: Tensor
    """[C, N, 2] pixels."""
    depths: Tensor
    """[C, N] along the optical axis."""
    conics: Tensor
    """[C, N, 3] inverse covariances in pixels: xx, xy, yy."""
    opacities: Tensor
    """[C, N] after antialiasing."""
    radii: Tensor
    """[C, N, 2] int32: half extents in pixels, 0 where the gaussian is not visible."""


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Return contiguous float32 arrays of CPU tensors, sharing memory where possible."""
    return [tensor.detach().to(torch.float32).contiguous().numpy() for tensor in tensors]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        width: int,
        height: int,
        settings: Settings,
    ) -> tuple[Tensor, ...]:
        shape = len(viewmats), len(means)
        outputs = [torch.zeros(*shape, 2), torch.zeros(shape), torch.zeros(*shape, 3), torch.zeros(shape)]
        radii = torch.zeros(*shape, 2, dtype=torch.int32)
        gaussians = Gaussians(*arrays(means, quats, scales, opacities))
        cameras = Cameras(*arrays(viewmats, Ks), width=width, height=height)
        parts = _threads.parts(len(means))
        projected = Projected(*arrays(*outputs))
        _threads.run(project_kernel, parts, gaussians, cameras, settings, projected, radii.numpy())
        ctx.save_for_backward(means, quats, scales, opacities, viewmats, Ks, radii)
        ctx.size, ctx.settings, ctx.parts = (width, height), settings, parts
        ctx.mark_non_differentiable(radii)
        return *outputs, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *inputs, radii = ctx.saved_tensors
        *gaussians, viewmats, Ks = arrays(*inputs)
        gaussians, cameras = Gaussians(*gaussians), Cameras(viewmats, Ks, *ctx.size)
        v_inputs = [torch.zeros(tensor.shape) for tensor in inputs[:4]]
        v_viewmats = torch.zeros(len(ctx.parts), *viewmats.shape, dtype=torch.float64)
        v_projected, v_gaussians = Projected(*arrays(*gradients[:4])), Gaussians(*arrays(*v_inputs))
        settings = gaussians, cameras, ctx.settings, radii.numpy()
        _threads.run(project_backward, ctx.parts, *settings, v_projected, v_gaussians, v_viewmats.numpy())
        return *v_inputs, v_viewmats.sum(0).float(), None, None, None, None


def project(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    settings: Settings,
) -> Projection:
    """Project gaussians to the cameras' image planes, differentiably in all tensors except `Ks`."""
    return Projection(*_Project.apply(means, quats, scales, opacities, viewmats, Ks, width, height, settings))
