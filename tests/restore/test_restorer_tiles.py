"""Windows over an image and their blending."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nifi_ns.restore._tiles import feathered, windows


@given(st.integers(1, 400), st.integers(3, 40), st.integers(0, 8), st.sampled_from([1, 2, 8]))
def test_windows_cover_the_size_with_the_requested_overlap(size: int, tile: int, overlap: int, multiple: int) -> None:
    size, tile, overlap = size * multiple, tile * multiple, min(overlap, tile // 2) * multiple
    spans = windows(size, tile, overlap, multiple)
    assert spans[0][0] == 0
    assert spans[-1][1] == size
    assert all(stop - start <= tile and start % multiple == stop % multiple == 0 for start, stop in spans)
    assert all(before[1] - after[0] >= overlap for before, after in pairwise(spans))


def test_a_size_that_fits_is_one_window() -> None:
    assert windows(512, 512, 64, 8) == [(0, 512)]
    assert windows(960, 512, 64, 8) == [(0, 512), (448, 960)]


@pytest.mark.parametrize("size", [(40, 64), (16, 100), (37, 16)])
def test_blending_tiles_of_one_image_gives_the_image(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size)
    spans = [windows(side, 16, 4, 1) for side in size]
    torch.testing.assert_close(feathered(image, lambda tile, y, x: tile, *spans), image)


def test_a_step_between_tiles_becomes_a_linear_ramp() -> None:
    image = torch.zeros(1, 3, 8, 24)
    spans = [(0, 8)], [(0, 16), (8, 24)]
    blended = feathered(image, lambda tile, y, x: torch.full_like(tile, float(x > 0)), *spans)
    row = blended[0, 0, 0]
    assert row[:8].eq(0).all()
    assert row[16:].eq(1).all()
    torch.testing.assert_close(row[8:16], (torch.arange(8) + 0.5) / 8)
