"""Projected gaussians to pixels on the CPU, differentiable in everything that was projected."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nifi_ns.rasterize import _threads
from nifi_ns.rasterize._kernels import CHANNELS, GRADIENT_ROW, ROW, TILE, draw, draw_backward
from nifi_ns.rasterize._tiles import count, fill, gather, pack

_TASKS_PER_THREAD = 4  # more tasks balance better, and cost about 30 us each


class TileLists:
    """The gaussians that touch each tile, in order of depth, and how to share the tiles among threads."""

    def __init__(self, order: np.ndarray, rows: np.ndarray, cameras: int, n: int, width: int, height: int) -> None:
        self.tiles_x, self.tiles_y = -(-width // TILE), -(-height // TILE)
        sizes = np.zeros(cameras * self.tiles_x * self.tiles_y, np.int32)
        self.pair_ends = np.empty(len(order), np.int64)
        count(order, rows, n, self.tiles_x, self.tiles_y, self.pair_ends, sizes)
        self.offsets = np.zeros(len(sizes) + 1, np.int32)
        np.cumsum(sizes, out=self.offsets[1:])
        pairs = int(self.offsets[-1])
        self.ids, self.slots = np.empty(pairs, np.int32), np.empty(pairs, np.int32)
        fill(order, rows, n, self.tiles_x, self.tiles_y, self.offsets[:-1].copy(), self.ids, self.slots)

    def ranges(self, work: np.ndarray) -> list[tuple[int, int]]:
        """Ranges of tiles of about equal `work` [tiles] (how many gaussians each draws)."""
        threads = _threads.num_threads()
        if threads == 1:
            return [(0, len(work))]
        done = np.cumsum(work + 8)  # an empty tile costs something too
        tasks = min(threads * _TASKS_PER_THREAD, len(work))
        cuts = np.searchsorted(done, done[-1] * np.arange(1, tasks) / tasks)
        edges = [0, *np.unique(cuts).tolist(), len(work)]
        return [(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b]


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        means2d: Tensor,
        conics: Tensor,
        colors: Tensor,
        opacities: Tensor,
        depths: Tensor,
        radii: Tensor,
        width: int,
        height: int,
        absgrad: bool,
    ) -> tuple[Tensor, Tensor]:
        cameras, n, channels = colors.shape
        visible = (radii > 0).all(-1).flatten().nonzero()[:, 0]
        order = visible[depths.detach().flatten()[visible].argsort(stable=True)].numpy()
        padded = torch.zeros(-(-channels // CHANNELS), cameras * n, CHANNELS)
        for k, part in enumerate(colors.detach().split(CHANNELS, dim=-1)):
            padded[k, :, : part.shape[-1]] = part.reshape(cameras * n, -1)
        geometry = [t.detach().reshape(cameras * n, -1).contiguous().numpy() for t in (means2d, conics)]
        weights = opacities.detach().reshape(-1).contiguous().numpy()
        packed = []
        for part in padded:
            rows = np.empty((len(order), ROW), np.float32)
            pack(order, *geometry, weights, part.numpy(), radii.reshape(-1, 2).numpy(), rows)
            packed.append(rows)
        lists = TileLists(order, packed[0], cameras, n, width, height)
        image = torch.empty(len(packed), cameras, height, width, CHANNELS)
        transmittance = torch.empty(cameras, height, width)
        drawn = np.empty(len(lists.offsets) - 1, np.int32)
        for rows, part in zip(packed, image, strict=True):
            ranges = lists.ranges(np.diff(lists.offsets))
            shape = lists.tiles_x, lists.tiles_y, width, height
            target = part.numpy(), transmittance.numpy(), drawn
            _threads.run(draw, ranges, rows, lists.offsets, lists.ids, *shape, *target)
        ctx.save_for_backward(means2d, image, transmittance)
        ctx.lists, ctx.packed, ctx.order, ctx.drawn = lists, packed, order, drawn
        ctx.shape, ctx.absgrad = (cameras, n, channels, width, height), absgrad
        flat = image.permute(1, 2, 3, 0, 4).reshape(cameras, height, width, -1)[..., :channels]
        return flat, 1 - transmittance[..., None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_image: Tensor, v_alpha: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        means2d, image, transmittance = ctx.saved_tensors
        cameras, n, channels, width, height = ctx.shape
        lists: TileLists = ctx.lists
        totals = torch.zeros(len(ctx.packed), cameras * n, GRADIENT_ROW)
        gradients = np.empty((len(lists.ids), GRADIENT_ROW), np.float32)
        for k, part in enumerate(v_image.split(CHANNELS, dim=-1)):
            v_part = torch.nn.functional.pad(part, (0, CHANNELS - part.shape[-1])).contiguous()
            rest = (v_part * image[k]).sum(-1)
            if k == 0:
                rest -= transmittance * v_alpha[..., 0]
            shape = lists.tiles_x, lists.tiles_y, width, height
            source = ctx.drawn, v_part.numpy(), rest.numpy()
            ranges = lists.ranges(ctx.drawn)
            _threads.run(
                draw_backward, ranges, ctx.packed[k], lists.offsets, lists.ids, lists.slots, *shape, *source, gradients
            )
            gather(gradients, lists.pair_ends, ctx.order, totals[k].numpy())
        v_colors = totals[:, :, -CHANNELS:].permute(1, 0, 2).reshape(cameras, n, -1)[..., :channels]
        shared = totals.sum(0) if len(totals) > 1 else totals[0]
        v_means2d, v_abs, v_conics, v_opacities, _ = shared.reshape(cameras, n, -1).split([2, 2, 3, 1, CHANNELS], -1)
        if ctx.absgrad:
            means2d.absgrad = v_abs
        return v_means2d, v_conics, v_colors, v_opacities[..., 0], None, None, None, None, None


def blend(
    means2d: Tensor,  # [C, N, 2]
    conics: Tensor,  # [C, N, 3]
    colors: Tensor,  # [C, N, D]
    opacities: Tensor,  # [C, N]
    depths: Tensor,  # [C, N]
    radii: Tensor,  # [C, N, 2], int32, 0 where invisible
    width: int,
    height: int,
    absgrad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Blend gaussians front to back: the image [C, H, W, D] and its alpha [C, H, W, 1].

    With `absgrad`, the backward pass sets `means2d.absgrad` [C, N, 2]: the sum over pixels of the absolute gradients.
    """
    return _Blend.apply(means2d, conics, colors, opacities, depths, radii, width, height, absgrad)  # type: ignore[return-value]
