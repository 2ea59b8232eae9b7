import math

import numpy as np
import pytest

from nifi_ns.compress.codec._octree import PositionCoder
from nifi_ns.morton import morton_codes, morton_coordinates


@pytest.mark.parametrize("depth", [1, 7, 20])
def test_morton_codes_are_invertible_and_ordered(depth: int):
    coordinates = np.random.default_rng(0).integers(0, 1 << depth, (500, 3))
    codes = morton_codes(coordinates, depth)
    assert (morton_coordinates(codes, depth) == coordinates).all()
    assert morton_codes(np.array([[1, 0, 0]]), 1) > morton_codes(np.array([[0, 1, 1]]), 1)


@pytest.mark.parametrize(("count", "depth"), [(1, 1), (1, 20), (2, 3), (300, 2), (5000, 11)])
def test_positions_survive_a_round_trip(count: int, depth: int):
    rng = np.random.default_rng(count)
    codes = np.sort(rng.integers(0, 1 << (3 * depth), count))  # with repetitions if depth is small
    assert (PositionCoder(depth).decode(PositionCoder(depth).encode(codes), count) == codes).all()


def test_the_order_of_the_gaussians_costs_no_bits():
    count, depth = 5000, 12
    codes = np.sort(np.random.default_rng(0).integers(0, 1 << (3 * depth), count))
    unordered = 3 * depth - math.lgamma(count + 1) / math.log(2) / count  # bits a gaussian
    assert 8 * len(PositionCoder(depth).encode(codes)) / count < unordered + 0.4


def test_many_gaussians_in_one_cell_are_cheap():
    codes = np.full(100_000, 5)
    assert len(PositionCoder(4).encode(codes)) < 20
