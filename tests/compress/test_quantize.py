from dataclasses import fields

import pytest
import torch
from splat_scenes import covariances, random_splats

from nifi_ns.compress import PRESETS, Bits, Grid, fake_quantize
from nifi_ns.compress.quantize import quantize
from nifi_ns.compress.rotations import canonical
from nifi_ns.errors import NifiError
from nifi_ns.splats import Splats

FINEST = Bits(means=16, scales=12, quats=12, opacities=12, luma=12, chroma=12, sh=12)


def test_canonical_splats_are_the_same_ellipsoids_sorted_and_turned():
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
    for field, tolerance in (("means", 2e-2), ("scales", 2e-3), ("quats", 4e-3), ("opacities", 2e-2), ("sh", 2e-3)):
        torch.testing.assert_close(getattr(coded, field), getattr(exact, field), rtol=2e-3, atol=tolerance)


def test_every_value_is_off_by_half_a_step_at_most():
    splats, bits = random_splats(2000), PRESETS["coarse"]
    grid, exact, coded = Grid.fit(splats, bits), canonical(splats), fake_quantize(splats, bits)
    assert (coded.scales - exact.scales).abs().max() <= grid.scale_step / 2 * 1.001
    near = (exact.means - torch.tensor(grid.centre)).norm(dim=1) < grid.radius * 0.9
    assert (coded.means - exact.means)[near].abs().max() <= grid.mean_step * grid.radius / 2 * 1.001
    alphas = coded.opacities.sigmoid() - exact.opacities.sigmoid()
    assert alphas.abs().max() <= 0.5 / (grid.alpha_levels - 1) + 0.01


def test_rotations_of_round_gaussians_get_fewer_bits():
    splats = random_splats(1000)
    round_ones = torch.arange(1000) < 500
    splats.scales[round_ones] = splats.scales[round_ones].mean(dim=1, keepdim=True)
    grid = Grid.fit(splats, PRESETS["coarse"])
    skips = grid.quat_skips(quantize(splats, grid).scales)
    assert skips[round_ones].float().mean() > skips[~round_ones].float().mean() + 1
    coded = fake_quantize(splats, PRESETS["coarse"])
    turned = 1 - (coded.quats * canonical(splats).quats).sum(dim=1).abs()
    assert turned[round_ones].mean() > 4 * turned[~round_ones].mean()


def test_more_bits_are_closer():
    splats = random_splats(1000)
    errors = [(covariances(fake_quantize(splats, PRESETS[p])) - covariances(splats)).abs().mean() for p in PRESETS]
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]


def test_gradients_pass_straight_through():
    splats = random_splats(50)
    leaves = Splats(*(getattr(splats, f.name).clone().requires_grad_() for f in fields(splats)))
    coded = fake_quantize(leaves, PRESETS["coarse"])
    weights = torch.randn(50, 3)
    ((coded.means + coded.sh[:, 0]) * weights + coded.scales).sum().backward()
    torch.testing.assert_close(leaves.means.grad, weights)
    torch.testing.assert_close(leaves.sh.grad, weights[:, None])
    torch.testing.assert_close(leaves.scales.grad, torch.ones(50, 3))


def test_an_earlier_grid_holds_splats_that_left_it():
    splats = random_splats(100)
    grid = Grid.fit(splats, PRESETS["mid"])
    moved = Splats(splats.means * 1.5 - 1, splats.scales + 9, splats.quats, splats.opacities * 9, splats.sh * 9)
    coded = fake_quantize(moved, PRESETS["mid"], grid)
    assert all(torch.isfinite(getattr(coded, f.name)).all() for f in fields(coded))
    torch.testing.assert_close(coded.sh, moved.sh, rtol=0, atol=0.5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_scene_may_be_a_single_point(count: int):
    splats = random_splats(1)[torch.zeros(count, dtype=torch.long)]
    torch.testing.assert_close(fake_quantize(splats, PRESETS["fine"]).means, splats.means, rtol=0, atol=1e-5)


def test_refuses_what_it_cannot_hold():
    empty = random_splats(4)[torch.zeros(4, dtype=torch.bool)]
    with pytest.raises(NifiError, match="empty"):
        Grid.fit(empty, PRESETS["mid"])
    broken = random_splats(4)
    broken.scales[2, 1] = torch.nan
    with pytest.raises(NifiError, match="scales hold values that are not finite"):
        Grid.fit(broken, PRESETS["mid"])
    with pytest.raises(NifiError, match="bits of luma"):
        Bits(means=10, scales=5, quats=5, opacities=4, luma=13, chroma=4, sh=3)
