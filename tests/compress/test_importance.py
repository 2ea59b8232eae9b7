import pytest
import torch
from splat_scenes import random_splats, views_of_middle

from nifi_ns.compress import importance_views, measure_importance
from nifi_ns.rasterize import render
from nifi_ns.splats import Splats
from nifi_ns.views import spaced_views


def wall_and_dots() -> Splats:
    """Return a black wall, a white dot and a black dot in front of it, and a white dot behind it."""
    means = torch.tensor([[0.0, 0, 0], [-1, 0, -1], [1, 0, -1], [0, 0, 2]])
    scales = torch.tensor([[1.5, 1.5, -3], [-2, -2, -2], [-2, -2, -2], [-2, -2, -2]])
    colors = torch.tensor([-1.77, 1.77, -1.77, 1.77])
    opacities = torch.tensor([6.0, 2, 2, 2])
    return Splats(
        means, scales, torch.tensor([[1.0, 0, 0, 0]]).repeat(4, 1), opacities, colors[:, None, None].expand(4, 1, 3)
    )


def test_hidden_gaussians_and_those_of_the_colour_behind_them_have_low_importance():
    _, contrasting, same, hidden = measure_importance(wall_and_dots(), views_of_middle()).opacity_sensitivity.tolist()
    assert contrasting > 100 * same
    assert contrasting > 100 * hidden


@pytest.mark.parametrize("opacity", [6.0, 30.0])
def test_fully_opaque_gaussians_keep_their_importance(opacity: float):
    splats = wall_and_dots()
    before = measure_importance(splats, views_of_middle()).opacity_sensitivity
    splats.opacities[:2] = opacity
    after = measure_importance(splats, views_of_middle()).opacity_sensitivity
    assert (after[:2] > 0.9 * before[:2]).all()


def test_opacity_sensitivity_is_on_average_the_squared_derivative_by_log_alpha():
    splats, view = random_splats(6), views_of_middle(1, size=24)[0]
    alphas = splats.opacities.sigmoid()
    exact = []
    for i in range(6):  # by central differences
        images = []
        for factor in (0.99, 1.01):
            faded = alphas.clone()
            faded[i] *= factor
            images.append(render(Splats(splats.means, splats.scales, splats.quats, faded.logit(), splats.sh), view).rgb)
        exact.append(((images[1] - images[0]) / 0.02).square().sum())
    estimate = torch.stack(
        [measure_importance(splats, [view], seed=seed).opacity_sensitivity for seed in range(400)]
    ).mean(dim=0)
    torch.testing.assert_close(estimate, torch.stack(exact), rtol=0.25, atol=1e-3)


def test_large_visible_gaussians_have_the_highest_position_sensitivity():
    splats = random_splats(3)
    splats.means[:] = torch.tensor([[-0.5, 0, 0], [0.5, 0, 0], [0, 0, 900.0]])  # the last is a dot far away
    splats.scales[:] = torch.tensor([[-1.0], [-3], [-3]])
    splats.opacities[:] = 2
    large, small, away = measure_importance(splats, views_of_middle()).position_sensitivity.tolist()
    assert large > 4 * small > 16 * away >= 0


def test_importance_depends_on_the_seed_only():
    splats, views = random_splats(20), views_of_middle()
    first, again, other = (measure_importance(splats, views, seed=seed).opacity_sensitivity for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_spaced_views_include_the_first_and_the_last():
    views = views_of_middle(10)
    assert [view.name for view in spaced_views(views, 3)] == ["row_0", "row_4", "row_9"]
    assert spaced_views(views, 99) == views


def test_cameras_between_are_added_to_few_views():
    views = views_of_middle(3)
    more = importance_views(views, 6)
    assert more[:3] == views and 3 < len(more) <= 6
    assert len(importance_views(views, 4)) == 4 and len(importance_views(views, 99)) == len(more)
    ends = [{tuple(a.centre.tolist()), tuple(b.centre.tolist())} for a in views for b in views if a is not b]
    for view in more[3:]:
        halves = [sum(torch.tensor(end) for end in pair) / 2 for pair in ends]
        assert min(float((view.centre - half).norm()) for half in halves) < 1e-4
    assert importance_views(views, 2) == spaced_views(views, 2)
    assert importance_views(views[:1], 6) == views[:1]
