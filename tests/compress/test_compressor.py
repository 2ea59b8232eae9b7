from dataclasses import replace

import pytest
import torch
from splat_scenes import random_splats

from nifi_ns.compress import (
    BITS,
    Bits,
    CompressionSettings,
    Compressor,
    Importance,
    chosen_sh_degree,
    decode,
    encode,
    fake_quantize,
    info,
)
from nifi_ns.compress._budget import affordable, bits_for
from nifi_ns.compress.codec import LevelsOfDetail
from nifi_ns.errors import NifiError
from nifi_ns.splats import Splats


def opacity(splats: Splats) -> Importance:
    return Importance(opacity_sensitivity=splats.opacities, position_sensitivity=torch.ones_like(splats.opacities))


def run(settings: CompressionSettings, splats: Splats) -> list[int]:
    """Return the number of gaussians after each step."""
    compressor, counts = Compressor(settings), []
    for step in range(settings.steps):
        keep = compressor.prune_mask(step, splats, opacity)
        splats = splats if keep is None else splats[keep]
        counts.append(len(splats))
    return counts


@pytest.mark.parametrize("target", [600, 3_000, 10_000])
def test_affordable_fills_the_target_from_below(target: int):
    splats = random_splats(3000)
    count, data = affordable(3000, target, lambda n: encode(splats[torch.arange(n)], BITS["coarse"]))
    assert 0.98 * target <= len(data) <= target
    assert info(data).count == count
    assert data == encode(splats[torch.arange(count)], BITS["coarse"])


def test_affordable_takes_all_that_fit_or_none_if_not_even_one_does():
    splats = random_splats(50)

    def encode_first(count: int) -> bytes:
        return encode(splats[torch.arange(count)], BITS["coarse"])

    assert affordable(50, 10**6, encode_first)[0] == 50
    assert affordable(50, 40, encode_first) == (0, b"")


def test_bits_grow_only_when_all_gaussians_fit():
    splats = random_splats(500)

    def encode_all(bits: Bits) -> bytes:
        return encode(splats, bits)

    sizes = {name: len(encode_all(bits)) for name, bits in BITS.items()}
    assert bits_for(sizes["coarse"] // 2, encode_all) == BITS["coarse"]
    between = bits_for(sizes["mid"], encode_all)
    assert BITS["coarse"].scales < between.scales < BITS["fine"].scales
    assert 0.95 * sizes["mid"] < len(encode(splats, between)) <= sizes["mid"]


def test_pruning_divides_by_the_same_factor_in_each_stage():
    settings = CompressionSettings(target_size="2KB", steps=40, stages=4, prune_until=0.5)
    counts = run(settings, random_splats(3000))
    assert [step for step in range(1, 40) if counts[step] != counts[step - 1]] == [5, 10, 15]
    ratios = [b / a for a, b in zip([3000, *counts[:15:5]], counts[:20:5], strict=True)]
    assert max(ratios) < 1.15 * min(ratios)
    assert counts[-1] < 500


def test_pruning_keeps_the_most_important_gaussians():
    splats = random_splats(1000)
    keep = Compressor(CompressionSettings(target_size="1KB", stages=1)).prune_mask(0, splats, opacity)
    assert keep is not None
    assert splats.opacities[keep].min() >= splats.opacities[~keep].max()


def test_quantisation_starts_at_the_given_step():
    splats = random_splats(50)
    compressor = Compressor(CompressionSettings(target_size="1MB", steps=10, bits="coarse", quantize_from=0.6))
    assert compressor.as_decoded(5, splats, opacity) is splats
    seen = compressor.as_decoded(6, splats, opacity)
    torch.testing.assert_close(seen.scales, fake_quantize(splats, BITS["coarse"]).scales)
    moved = replace(splats, means=splats.means * 1.01)
    with_earlier_grid = compressor.as_decoded(7, moved, opacity).means
    assert not torch.equal(with_earlier_grid, fake_quantize(moved, BITS["coarse"]).means)


@pytest.mark.parametrize("target", ["1.2KB", "4KB", "9000"])
def test_the_file_is_at_most_two_percent_below_the_target(target: str):
    settings = CompressionSettings(target_size=target, steps=0)
    compressed = Compressor(settings).finish(random_splats(1500), opacity)
    size = {"1.2KB": 1200, "4KB": 4000, "9000": 9000}[target]
    assert 0.98 * size <= len(compressed.data) <= size
    assert len(compressed.splats) == info(compressed.data).count


def test_a_small_scene_has_the_finest_bits():
    compressed = Compressor(CompressionSettings(target_size="1MB", steps=0)).finish(random_splats(100), opacity)
    assert len(compressed.splats) == 100
    assert compressed.bits.scales == pytest.approx(BITS["fine"].scales, abs=0.1)


@pytest.mark.parametrize(
    ("levels", "count", "counts"),
    [(1, 5000, [5000]), (3, 4096, [256, 768, 3072]), (4, 4096, [64, 192, 768, 3072]), (3, 300, [75, 225]), (3, 9, [9])],
)
def test_levels_of_detail_grow_by_their_ratio(levels: int, count: int, counts: list[int]):
    assert LevelsOfDetail(levels, 4.0).counts(count) == counts


def test_coarser_levels_hold_the_most_important_gaussians_and_are_drawn_while_quantising():
    splats = random_splats(2000)
    settings = CompressionSettings(
        target_size="10KB", steps=20, stages=1, prune_until=0, bits="coarse", lod_levels=3, lod_steps=0.5
    )
    compressor = Compressor(settings)
    keep = compressor.prune_mask(0, splats, opacity)
    assert keep is not None
    splats = splats[keep]
    seen = [compressor.as_decoded(step, splats, opacity) for step in range(12, 17)]
    totals = LevelsOfDetail(3, 4.0).cumulative_counts(len(splats))
    assert [len(part) for part in seen] == [totals[i] for i in (0, 2, 1, 2, 2)]
    dropped = len(splats) - len(seen[0])
    assert seen[0].opacities.min() >= splats.opacities.sort().values[:dropped].max() - 0.5  # as quantised
    data = compressor.finish(splats, opacity).data
    levels = [decode(data, levels=i + 1).opacities for i in range(3)]
    assert levels[0].mean() > levels[1].mean() > levels[2].mean()
    assert 0.98 * 10_000 <= len(data) <= 10_000


def test_a_size_too_small_for_a_single_gaussian_is_refused():
    with pytest.raises(NifiError, match="not a single gaussian fits into 50"):
        Compressor(CompressionSettings(target_size="50")).finish(random_splats(10), opacity)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"target_size": "3 apples"}, "cannot read the size"),
        ({"target_size": "0KB"}, "the size is '0KB', expected more than 0"),
        ({"sh_degree": 4}, "sh_degree is 4, expected auto, 0, 1, 2 or 3"),
        ({"steps": -1}, "steps is -1"),
        ({"quantize_from": 0.1}, "quantize_from is 0.1, expected between prune_until and 1"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict, message: str):
    with pytest.raises(NifiError, match=message):
        CompressionSettings(**wrong)


def test_the_highest_sh_degree_at_which_all_gaussians_fit_is_kept():
    splats = random_splats(1000, 2)
    sizes = [len(encode(splats.with_sh_degree(degree), BITS["coarse"])) for degree in range(3)]
    for size, degree in [(sizes[2] + 100, 2), (sizes[2] - 100, 1), (sizes[1] - 100, 0), (sizes[0] // 2, 0)]:
        assert chosen_sh_degree(splats, CompressionSettings(target_size=str(size))) == degree
    assert chosen_sh_degree(splats, CompressionSettings(target_size="1KB", sh_degree=3)) == 2
