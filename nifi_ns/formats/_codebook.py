"""Quantisers fitted to data: a codebook of 256 values (8 bits), and a palette of 65,536 vectors (16 bits)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_PALETTE_BITS = 16


def codebook(values: Tensor, steps: int = 8) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Quantise `values` of any shape. Return an ascending codebook of 256 values, and the index of each value in it.

    Up to 256 distinct values, as decoded from a scene file, are kept exactly. More are clustered by Lloyd's algorithm.
    It starts from the average of equal counts and equal distances, to fit both the bulk and the tails.
    """
    flat, order = values.detach().cpu().double().flatten().sort()
    data = flat.numpy()
    distinct = np.unique(data)
    if len(distinct) <= 256:
        codes = np.searchsorted(distinct, values.detach().cpu().double().numpy())
        return np.pad(distinct, (0, 256 - len(distinct)), "edge").astype(np.float32), codes.astype(np.uint8)
    centers = np.linspace(data[0], data[-1], 256)
    centers = (centers + data[np.linspace(0, len(data) - 1, 256).round().astype(np.int64)]) / 2
    total = np.concatenate([[0.0], np.cumsum(data)])
    for _ in range(steps):
        edges = _edges(data, centers)
        counts = np.diff(edges)
        means = np.diff(total[edges]) / np.maximum(counts, 1)
        centers = np.sort(np.where(counts > 0, means, centers))
    codes = np.empty(len(data), np.uint8)
    codes[order.numpy()] = np.repeat(np.arange(256, dtype=np.uint8), np.diff(_edges(data, centers)))
    return centers.astype(np.float32), codes.reshape(tuple(values.shape))


def palette(vectors: Tensor) -> tuple[Tensor, NDArray[np.int64]]:
    """Quantise `vectors` [N, C]. Return a palette [K, C], K at most 65,536, and the index of each vector in it, [N].

    Cells are split at the median of their widest axis. k-means would be slightly better, but takes hours on a CPU.
    """
    data = vectors.detach().float()
    labels = torch.zeros(len(data), dtype=torch.long, device=data.device)
    for _ in range(min(_PALETTE_BITS, (len(data) - 1).bit_length())):
        cells = int(labels.max()) + 1
        _, spread = _moments(data, labels, cells)
        axis = spread.argmax(dim=1)[labels]
        along = data.gather(1, axis[:, None])[:, 0]
        order = torch.argsort(along)
        order = order[torch.argsort(labels[order], stable=True)]  # by cell, and within a cell along its widest axis
        sizes = torch.bincount(labels, minlength=cells)
        rank = torch.arange(len(data), device=data.device) - (sizes.cumsum(0) - sizes)[labels[order]]
        upper = torch.zeros_like(labels)
        upper[order] = (2 * rank >= sizes[labels[order]]).long()
        labels = torch.unique(2 * labels + upper, return_inverse=True)[1]
    entries, _ = _moments(data, labels, int(labels.max()) + 1)
    return entries, labels.cpu().numpy()


def _edges(data: NDArray, centers: NDArray) -> NDArray[np.int64]:
    """Return where the values nearest to each centre begin in the sorted `data`, and where the last ones end, [257]."""
    return np.concatenate([[0], np.searchsorted(data, (centers[1:] + centers[:-1]) / 2), [len(data)]])


def _moments(data: Tensor, labels: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance [cells, C] of the rows of `data` with each label."""
    counts = torch.bincount(labels, minlength=cells).clamp_min(1)[:, None]
    zero = torch.zeros(cells, data.shape[1], dtype=data.dtype, device=data.device)
    mean = zero.index_add(0, labels, data) / counts
    return mean, zero.index_add(0, labels, (data - mean[labels]).square()) / counts
