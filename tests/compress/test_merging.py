import torch
from splat_scenes import covariances, random_splats, views_of_middle

from nifi_ns.compress import Importance, measure_importance
from nifi_ns.compress._merging import merge, reduce_by_merging
from nifi_ns.rasterize import render
from nifi_ns.splats import Splats


def error(splats: Splats, whole: Splats) -> float:
    views = views_of_middle(3, size=64)
    return sum(float((render(splats, v).rgb - render(whole, v).rgb).square().mean()) for v in views)


def by_order(splats: Splats) -> Importance:
    """Return almost equal importance, falling slightly from the first gaussian to the last."""
    falling = 1 + 1e-6 * torch.arange(len(splats), 0, -1)
    return Importance(falling, falling)


def wall(count: int = 32) -> Splats:
    """Return a plane of small overlapping gaussians in coloured patches."""
    x, y = torch.meshgrid(torch.linspace(-2, 2, count), torch.linspace(-2, 2, count), indexing="xy")
    means = torch.stack([x.flatten(), y.flatten(), torch.zeros(count**2)], dim=1)
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(8, 8, 3, generator=generator).repeat_interleave(4, 0).repeat_interleave(4, 1)
    n = count**2
    return Splats(
        means + 0.02 * torch.randn(n, 3, generator=generator),
        torch.tensor([-2.5, -2.5, -5.0]).repeat(n, 1),
        torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1),
        torch.full((n,), 2.0),
        patches.reshape(n, 1, 3),
    )


def test_merging_has_a_quarter_of_the_error_of_pruning() -> None:
    whole = wall()

    def measure(splats: Splats) -> Importance:
        return measure_importance(splats, views_of_middle())

    order = measure(whole).opacity_sensitivity.argsort(descending=True)
    dropped, merged = whole[order[:256]], reduce_by_merging(whole, measure, 256)
    assert len(merged) == 256
    assert error(merged, whole) < error(dropped, whole) / 4


def test_two_gaussians_become_their_mixture() -> None:
    pair = random_splats(2, 1)
    pair.means[:] = torch.tensor([[0.0, 0, 0], [0.1, 0, 0]])
    pair.scales[:] = torch.tensor([[-1.0, -2, -3], [-1.5, -1.5, -3]])
    pair.opacities[:] = -2
    pair.sh[1] = pair.sh[0] + 0.1
    (one,) = [merge(pair, by_order(pair), 1)]
    area = pair.scales.sort(dim=1).values[:, 1:].sum(dim=1).exp()
    weights = area / area.sum()
    mean = (weights[:, None] * pair.means).sum(dim=0)
    offsets = pair.means - mean
    mixture = (weights[:, None, None] * (covariances(pair) + offsets[:, :, None] * offsets[:, None, :])).sum(dim=0)
    torch.testing.assert_close(one.means[0], mean)
    torch.testing.assert_close(covariances(one)[0], mixture, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one.sh[0], (weights[:, None, None] * pair.sh).sum(dim=0))
    cover = one.opacities.sigmoid() * one.scales.sort(dim=1).values[:, 1:].sum(dim=1).exp()
    torch.testing.assert_close(cover[0], area.sum() * torch.tensor(-2.0).sigmoid())


def test_a_hidden_gaussian_does_not_move_the_one_it_is_merged_into() -> None:
    pair = random_splats(2)
    pair.means[:] = torch.tensor([[0.0, 0, 0], [0.1, 0, 0]])
    pair.sh[1] = pair.sh[0]
    hidden = Importance(torch.tensor([1.0, 0.0]), torch.ones(2))
    kept = merge(pair, hidden, 1)
    assert kept.means[0, 0] < 0.01 and kept.opacities[0] < pair.opacities[0] + 0.1


def test_gaussians_too_far_or_too_different_in_colour_are_dropped() -> None:
    for distance, colour in ((50.0, 0.0), (0.1, 3.0)):
        pair = random_splats(2)
        pair.means[:] = torch.tensor([[0.0, 0, 0], [distance, 0, 0]])
        pair.sh[1] = pair.sh[0] + colour
        kept = merge(pair, by_order(pair), 1)
        torch.testing.assert_close(kept.means[0], pair.means[0])
        torch.testing.assert_close(kept.scales[0], pair.scales[0])


def test_nothing_changes_if_all_gaussians_are_kept() -> None:
    splats = random_splats(50)
    same = reduce_by_merging(splats, by_order, 50)
    torch.testing.assert_close(same.means, splats.means)
    assert len(merge(splats, by_order(splats), 50)) == 50
