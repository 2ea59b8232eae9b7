import hashlib
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from splat_scenes import random_splats, rows

from nifi_ns.compress import BITS, Bits, Grid, decode, encode, fake_quantize, info
from nifi_ns.compress.codec import _codec as codec
from nifi_ns.compress.codec import precision_classes
from nifi_ns.compress.codec._grid import MAX_SKIP
from nifi_ns.compress.codec._scene import STREAMS
from nifi_ns.errors import NifiError
from nifi_ns.splats import Splats


def random_precision(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(MAX_SKIP + 1, (count,), generator=torch.Generator().manual_seed(seed))


ANY_BITS = st.builds(Bits, *(st.floats(1, most) for most in (16, 12, 9, 12, 9, 12, 12, 12)))


@pytest.mark.parametrize("preset", BITS)
@pytest.mark.parametrize("sh_degree", [0, 1, 3])
def test_decoding_equals_fake_quantize(preset: str, sh_degree: int):
    splats, precision = random_splats(500, sh_degree), random_precision(500)
    decoded = decode(encode(splats, BITS[preset], precision))
    assert decoded.sh_degree == sh_degree
    torch.testing.assert_close(rows(decoded), rows(fake_quantize(splats, BITS[preset], precision)), rtol=0, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 80), st.sampled_from([0, 1, 2]), st.integers(0, 10**6), ANY_BITS, st.floats(-12, 12), st.floats(0, 8)
)
def test_any_scene_survives_a_round_trip(count: int, degree: int, seed: int, bits: Bits, size: float, spread: float):
    splats = random_splats(count, degree, seed)
    splats = Splats(
        splats.means * 10**size + 10 ** (size / 2),
        splats.scales * spread,
        splats.quats,
        splats.opacities * spread * 10,
        splats.sh * 2**spread,
    )
    splats = splats[torch.randint(count, (count,))]  # with repetitions
    precision = random_precision(count, seed) if seed % 3 else None
    decoded = decode(encode(splats, bits, precision))
    assert all(torch.isfinite(getattr(decoded, field.name)).all() for field in fields(decoded))
    torch.testing.assert_close(rows(decoded), rows(fake_quantize(splats, bits, precision)), rtol=0, atol=0)


def test_a_file_of_version_1_decodes_to_the_same_values_for_ever():
    decoded = decode((Path(__file__).parents[2] / "data" / "scene_v1.nifi").read_bytes())
    values = b"".join(getattr(decoded, field.name).numpy().astype("<f4").tobytes() for field in fields(decoded))
    assert (len(decoded), decoded.sh_degree) == (60, 1)
    assert hashlib.sha256(values).hexdigest() == "2cb7c2ff8c71c06488a8e3a8213c7f391f82a99c1a72917312fad3581a8bfebb"


def test_the_order_of_the_gaussians_does_not_matter():
    splats = random_splats(400)
    assert encode(splats, BITS["mid"]) == encode(splats[torch.randperm(400)], BITS["mid"])


def test_the_sign_and_length_of_quaternions_do_not_matter():
    splats = random_splats(400)
    turned = replace(splats, quats=-3 * splats.quats)
    assert encode(splats, BITS["mid"]) == encode(turned, BITS["mid"])


def test_an_earlier_grid_is_kept():
    splats = random_splats(200)
    grid = Grid.fit(splats, BITS["mid"])
    part = splats[torch.arange(50)]
    data = encode(part, grid)
    assert info(data).grid == grid
    torch.testing.assert_close(rows(decode(data)), rows(fake_quantize(part, grid)), rtol=0, atol=0)


def test_sensitive_gaussians_get_more_bits_at_almost_the_same_size():
    splats = random_splats(2000)
    sensitivity = 10 ** (2 * torch.randn(2000, generator=torch.Generator().manual_seed(0)))
    adapted = fake_quantize(splats, BITS["mid"], precision_classes(sensitivity))
    same = fake_quantize(splats, BITS["mid"])
    damage = [(sensitivity * (coded.sh - splats.sh).square().sum(dim=(1, 2))).sum() for coded in (adapted, same)]
    assert damage[0] < damage[1] / 10
    assert len(encode(splats, BITS["mid"], precision_classes(sensitivity))) < 1.1 * len(encode(splats, BITS["mid"]))


@pytest.mark.parametrize("far", [1e3, 1e9])
def test_one_far_gaussian_makes_the_steps_of_positions_little_coarser(far: float):
    cube = random_splats(1000)
    cube.means = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))  # all inside the uncontracted ball
    stray = replace(cube, means=torch.cat([cube.means[1:], torch.tensor([[far, 0.5, 0.5]])]))
    near, wide = (Grid.fit(splats, BITS["mid"]) for splats in (cube, stray))
    assert wide.mean_step * wide.radius < 2.5 * near.mean_step * near.radius


def test_a_scene_file_is_several_times_smaller_than_a_ply():
    splats = random_splats(3000)
    assert len(encode(splats, BITS["coarse"])) < splats.ply_size / 6
    assert len(encode(splats, BITS["fine"])) < splats.ply_size / 3


def test_info_accounts_for_every_byte():
    splats = random_splats(300, 1)
    data = encode(splats, BITS["mid"])
    scene = info(data)
    assert list(scene.sizes) == [*STREAMS, "header"]
    assert (scene.count, scene.sh_degree, scene.size, scene.version) == (300, 1, len(data), 1)
    assert sum(scene.sizes.values()) == len(data)
    assert scene.sizes["header"] < 120
    more = info(encode(splats, replace(BITS["mid"], quats=7)))
    assert more.sizes["quats"] > scene.sizes["quats"]
    assert more.sizes["opacities"] == scene.sizes["opacities"]


def test_more_gaussians_than_a_file_can_hold_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(codec, "MAX_COUNT", 10)
    with pytest.raises(NifiError, match="11 gaussians are more than a scene file can hold"):
        encode(random_splats(11), BITS["mid"])


@pytest.mark.slow
def test_half_a_million_gaussians_take_seconds():
    import time

    splats = random_splats(540_000)
    started = time.perf_counter()
    decode(encode(splats, BITS["mid"]))
    assert time.perf_counter() - started < 60


LEVELS = [30, 100, 270]


def test_a_file_cut_after_a_level_is_a_coarser_scene():
    splats = random_splats(400, 1)
    grid = Grid.fit(splats, BITS["mid"])
    data = encode(splats, grid, counts=LEVELS)
    scene = info(data)
    assert [level.count for level in scene.levels] == [30, 130, 400] and scene.missing == 0
    assert scene.levels[-1].size == len(data)
    expected = fake_quantize(splats, grid)
    for i, level in enumerate(scene.levels):
        cut = data[: level.size]
        assert (info(cut).count, info(cut).missing) == (level.count, len(LEVELS) - 1 - i)
        for decoded in (decode(cut), decode(data, levels=i + 1)):
            part = expected[torch.arange(level.count)]
            larger = replace(part, scales=part.scales + level.growth)
            torch.testing.assert_close(rows(decoded), rows(larger), rtol=0, atol=0)
    assert scene.levels[0].growth > scene.levels[1].growth > scene.levels[2].growth == 0


def test_three_levels_cost_at_most_five_percent():
    splats = random_splats(3000, 0)
    one, three = (len(encode(splats, BITS["coarse"], counts=counts)) for counts in (None, [190, 560, 2250]))
    assert one < three < 1.05 * one


@pytest.mark.parametrize("counts", [[400, 1], [0, 400], [100] * 3, [25] * 16 + [0]])
def test_levels_must_add_up_to_the_number_of_gaussians(counts: list[int]):
    with pytest.raises(ValueError, match="do not add up to 400"):
        encode(random_splats(400), BITS["mid"], counts=counts)
