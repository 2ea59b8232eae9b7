from dataclasses import fields

import pytest
import torch
from splat_scenes import covariances, random_splats

from nifi_ns.compress import BITS, Bits, Grid, fake_quantize
from nifi_ns.compress.codec import precision_classes
from nifi_ns.compress.codec._grid import HEADROOM, MAX_SKIP
from nifi_ns.compress.codec._rotations import canonical
from nifi_ns.errors import NifiError
from nifi_ns.splats import Splats

FINEST = Bits(means=16, scales=12, ratios=9, quats=12, opacities=9, luma=12, chroma=12, sh=12)


def test_canonical_splats_are_the_same_ellipsoids_with_sorted_axes_and_largest_w():
    splats = random_splats(2000)
    same = canonical(splats)
    torch.testing.assert_close(covariances(same), covariances(splats), rtol=1e-4, atol=1e-5)
    assert (same.scales[:, :-1] >= same.scales[:, 1:]).all()
    assert (same.quats[:, :1] >= same.quats[:, 1:].abs() - 1e-6).all()
    again = canonical(same)
    torch.testing.assert_close(again.quats, same.quats)


@pytest.mark.parametrize("sh_degree", [0, 2])
def test_fine_bits_keep_everything_but_extreme_opacities(sh_degree: int):
    splats = random_splats(1000, sh_degree)
    splats.opacities.clamp_(-4, 5)
    coded = fake_quantize(splats, FINEST)
    exact = canonical(splats)
    torch.testing.assert_close(coded.scales[:, 0], exact.scales[:, 0], rtol=0, atol=2e-3)
    torch.testing.assert_close(coded.scales.exp(), exact.scales.exp(), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(coded.opacities.sigmoid(), exact.opacities.sigmoid(), rtol=6e-3, atol=0)
    for field, tolerance in (("means", 2e-2), ("quats", 4e-3), ("sh", 2e-3)):
        torch.testing.assert_close(getattr(coded, field), getattr(exact, field), rtol=2e-3, atol=tolerance)


@pytest.mark.parametrize("class_", [0, HEADROOM, MAX_SKIP])
def test_errors_are_at_most_half_a_step(class_: int):
    splats, bits = random_splats(2000), BITS["fine"]
    splats.opacities.clamp_(-4, 5)
    precision = torch.full((2000,), class_)
    grid, exact, coded = Grid.fit(splats, bits), canonical(splats), fake_quantize(splats, bits, precision)
    longest = (coded.scales[:, 0] / grid.scale_step).round().long()
    unit = {
        name: 1.001 * 2.0 ** grid.skips(name, precision, longest) for name in ("scales", "ratios", "means", "opacities")
    }
    assert ((coded.scales - exact.scales)[:, 0].abs() <= unit["scales"] * grid.scale_step / 2).all()
    lengths = [(s.scales[:, 1:] - s.scales[:, :1]).exp() * grid.ratio_levels for s in (coded, exact)]
    assert ((lengths[0] - lengths[1]).abs().amax(dim=1) <= unit["ratios"] / 2 + 1e-3 * grid.ratio_levels).all()
    near = (exact.means - torch.tensor(grid.centre)).norm(dim=1) < grid.radius * 0.9
    shift = (coded.means - exact.means).abs().amax(dim=1)
    assert (shift[near] <= (unit["means"] * grid.mean_step * grid.radius / 2 + 1e-5)[near]).all()
    levels = grid.alpha_level(coded.opacities) - grid.alpha_level(exact.opacities)
    assert (levels.abs() <= torch.where(levels < 0, 1, 0.5) * unit["opacities"] + 1e-3).all()


def test_more_sensitive_gaussians_have_finer_steps():
    splats = random_splats(1000)
    sensitivity = torch.full((1000,), 1.0)
    sensitivity[:500] = 64.0**2
    precision = precision_classes(sensitivity)
    assert precision[:500].unique().tolist() == [0] and precision[500:].unique().tolist() == [6]
    coded, exact = fake_quantize(splats, BITS["mid"], precision), canonical(splats)
    for name in ("means", "scales", "sh"):
        errors = (getattr(coded, name) - getattr(exact, name)).flatten(1).abs().mean(dim=1)
        assert errors[:500].mean() < errors[500:].mean() / 5
    assert precision_classes(torch.zeros(3)).tolist() == [HEADROOM] * 3


def test_rotations_of_round_gaussians_get_fewer_bits():
    splats = random_splats(1000)
    round_ones = torch.arange(1000) < 500
    splats.scales[round_ones] = splats.scales[round_ones].mean(dim=1, keepdim=True)
    coded = fake_quantize(splats, BITS["coarse"])
    turned = 1 - (coded.quats * canonical(splats).quats).sum(dim=1).abs()
    assert turned[round_ones].mean() > 4 * turned[~round_ones].mean()


def test_more_bits_reduce_the_error():
    splats = random_splats(1000)
    errors = [(covariances(fake_quantize(splats, BITS[p])) - covariances(splats)).abs().mean() for p in BITS]
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]


def test_gradients_pass_straight_through():
    splats = random_splats(50)
    leaves = Splats(*(getattr(splats, f.name).clone().requires_grad_() for f in fields(splats)))
    coded = fake_quantize(leaves, BITS["coarse"])
    weights = torch.randn(50, 3)
    ((coded.means + coded.sh[:, 0]) * weights + coded.scales).sum().backward()
    torch.testing.assert_close(leaves.means.grad, weights)
    torch.testing.assert_close(leaves.sh.grad, weights[:, None])
    torch.testing.assert_close(leaves.scales.grad, torch.ones(50, 3))


def test_values_outside_an_earlier_grid_stay_finite():
    splats = random_splats(100)
    grid = Grid.fit(splats, BITS["mid"])
    moved = Splats(splats.means * 1.5 - 1, splats.scales + 9, splats.quats, splats.opacities * 9, splats.sh * 9)
    coded = fake_quantize(moved, grid)
    assert all(torch.isfinite(getattr(coded, f.name)).all() for f in fields(coded))
    torch.testing.assert_close(coded.sh, moved.sh, rtol=0, atol=0.5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_scene_may_be_a_single_point(count: int):
    splats = random_splats(1)[torch.zeros(count, dtype=torch.long)]
    torch.testing.assert_close(fake_quantize(splats, BITS["fine"]).means, splats.means, rtol=0, atol=1e-5)


def test_empty_scenes_broken_gaussians_and_invalid_bits_are_refused():
    empty = random_splats(4)[torch.zeros(4, dtype=torch.bool)]
    with pytest.raises(NifiError, match="empty"):
        Grid.fit(empty, BITS["mid"])
    broken = random_splats(4)
    broken.scales[2, 1] = torch.nan
    with pytest.raises(NifiError, match="1 of 4 gaussians have scales that are not finite"):
        Grid.fit(broken, BITS["mid"])
    with pytest.raises(NifiError, match="bits: luma is 13, expected 1 to 12"):
        Bits(means=10, scales=5, quats=5, opacities=4, ratios=4, luma=13, chroma=4, sh=3)
