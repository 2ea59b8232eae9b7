"""Differentiable blending of projected gaussians into pixels."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nifi_ns.rasterize import _threads
from nifi_ns.rasterize._blend_kernels import GRADIENT_ROW, Gradients, Images, accumulate, draw, draw_backward
from nifi_ns.rasterize._project import Projection, arrays
from nifi_ns.rasterize._project_kernels import Projected
from nifi_ns.rasterize._tiles import CHANNELS, ROW, by_depth, list_tiles, pack

_TASKS_PER_THREAD = 8  # many short tasks (microseconds each), so that all threads finish at about the same time


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        means2d: Tensor,
        depths: Tensor,
        conics: Tensor,
        opacities: Tensor,
        colors: Tensor,
        radii: Tensor,
        width: int,
        height: int,
        absgrad: bool,
    ) -> tuple[Tensor, Tensor]:
        cameras, n, channels = colors.shape
        projected, visible = Projected(*arrays(means2d, depths, conics, opacities)), radii.numpy()
        order = by_depth(projected.depths.reshape(-1), visible)
        parts = _threads.parts(len(order))
        color, transmittance = torch.empty(cameras, height, width, channels), torch.empty(cameras, height, width)
        images, flat_colors = Images(*arrays(color, transmittance)), arrays(colors)[0].reshape(cameras * n, channels)
        passes = []
        for channel in range(0, channels, CHANNELS):
            rows = np.empty((len(order), ROW), np.float32)
            _threads.run(pack, parts, order, projected, visible, flat_colors, channel, rows)
            if channel == 0:
                tiles, ends = list_tiles(order, rows, cameras, n, width, height)
                drawn = np.empty(len(tiles.offsets) - 1, np.int32)
                tasks = _tasks(np.diff(tiles.offsets))
            _threads.run(draw, tasks, rows, tiles, channel, images, drawn)
            passes.append((channel, rows))
        ctx.save_for_backward(means2d, color, transmittance)
        ctx.lists, ctx.passes = (order, parts, tiles, ends, drawn), passes
        ctx.shape, ctx.absgrad = colors.shape, absgrad
        return color, transmittance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_color: Tensor, v_transmittance: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        means2d, color, transmittance = ctx.saved_tensors
        order, parts, tiles, ends, drawn = ctx.lists
        cameras, n, channels = ctx.shape
        shapes = (cameras, n, 2), (cameras, n, 2), (cameras, n, 3), (cameras, n), (cameras, n, channels)
        v_means2d, absolute, v_conics, v_opacities, v_colors = totals = [torch.zeros(shape) for shape in shapes]
        flat = Gradients(*(total.numpy().reshape(cameras * n, *total.shape[2:]) for total in totals))
        images, v_images = Images(*arrays(color, transmittance)), Images(*arrays(v_color, v_transmittance))
        gradients = np.empty((len(tiles.ids), GRADIENT_ROW), np.float32)
        tasks = _tasks(drawn)
        for channel, rows in ctx.passes:
            _threads.run(draw_backward, tasks, rows, tiles, channel, images, v_images, drawn, gradients)
            _threads.run(accumulate, parts, gradients, ends, order, channel, flat)
            v_images = v_images._replace(transmittance=np.zeros_like(v_images.transmittance))  # count it only once
        if ctx.absgrad:
            means2d.absgrad = absolute
        return v_means2d, None, v_conics, v_opacities, v_colors, None, None, None, None


def _tasks(work: np.ndarray) -> list[tuple[int, int]]:
    """Return ranges of tiles of about equal `work` [tiles], the number of gaussians in each tile."""
    done = np.cumsum(work + 8)  # an empty tile has a cost too
    tasks = _threads.num_threads() * _TASKS_PER_THREAD
    cuts = np.searchsorted(done, done[-1] * np.arange(1, tasks) / tasks)
    edges = [0, *np.unique(cuts).tolist(), len(work)]
    return [(first, last) for first, last in pairwise(edges) if first < last]


def blend(
    projection: Projection,
    colors: Tensor,  # [C, N, D]
    width: int,
    height: int,
    absgrad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Blend gaussians front to back into an image [C, H, W, D] and its transmittance [C, H, W].

    Differentiable in the means, conics and opacities of `projection`, and in `colors`. With `absgrad`, the backward
    pass sets `projection.means2d.absgrad` [C, N, 2] to the sum over pixels of the absolute gradients.
    """
    *tensors, radii = projection
    return _Blend.apply(*tensors, colors, radii, width, height, absgrad)  # type: ignore[return-value]
