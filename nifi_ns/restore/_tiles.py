"""Overlapping tiles that cover an image and are blended without seams."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def windows(size: int, tile: int, overlap: int, multiple: int) -> list[tuple[int, int]]:
    """Return [start, stop) of the fewest equal windows of length at most `tile` that cover `size`.

    Neighbours overlap by at least `overlap`. Starts and lengths are multiples of `multiple`; `size` and `tile` must
    be multiples too.
    """
    if size <= tile:
        return [(0, size)]
    count = -(-(size - overlap) // (tile - overlap))
    length = -(-(size + (count - 1) * overlap) // count // multiple) * multiple
    starts = [round(i * (size - length) / (count - 1) / multiple) * multiple for i in range(count)]
    return [(start, start + length) for start in starts]


def feathered(
    image: Tensor,
    restore: Callable[[Tensor, int, int], Tensor],
    rows: list[tuple[int, int]],
    columns: list[tuple[int, int]],
) -> Tensor:
    """Return an image [B, C, H, W] of `restore(tile, top, left)` of all windows, blended where they overlap."""
    if len(rows) == len(columns) == 1:
        return restore(image, 0, 0)
    result, total = torch.zeros_like(image), image.new_zeros(image.shape[-2:])
    for (top, bottom), wy in zip(rows, _ramps(rows), strict=True):
        for (left, right), wx in zip(columns, _ramps(columns), strict=True):
            weight = (wy[:, None] * wx[None]).to(image)
            tile = restore(image[..., top:bottom, left:right], top, left)
            result[..., top:bottom, left:right] += weight * tile
            total[top:bottom, left:right] += weight
    return result / total


def _ramps(spans: list[tuple[int, int]]) -> Iterator[Tensor]:
    """Yield the weights [length] of each window: 1, falling linearly to 0 over the overlap with a neighbour."""
    for i, (start, stop) in enumerate(spans):
        position = torch.arange(start, stop) + 0.5
        weight = torch.ones(stop - start)
        if i > 0:
            weight = weight.minimum((position - start) / (spans[i - 1][1] - start))
        if i + 1 < len(spans):
            weight = weight.minimum((stop - position) / (stop - spans[i + 1][0]))
        yield weight
