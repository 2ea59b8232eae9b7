"""The choice of a strength, which guards against a restorer that makes views worse."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pair_folders import write_scene

from nifi_ns.pairs import PairFolder
from nifi_ns.restore._evaluation import (
    STRENGTHS,
    Choice,
    ViewScores,
    choose_strength,
    error_change,
    score_views,
    spread_views,
)

NOTHING = (torch.zeros(1, 1, 3), torch.zeros(1, 1, 3), torch.zeros(1, 1, 3))


def folder(name: str) -> PairFolder:
    return PairFolder(Path(name), name, "25KB", 25_003, 3_000, "", {"train": (), "test": ()})


def scores(name: str, before: dict, **after: dict) -> ViewScores:
    """Return scores of one view. `after` is by strength in percent: s50={...}."""
    by_strength = {int(key[1:]) / 100: {**before, **values} for key, values in after.items()}
    return ViewScores(folder(name), "view", before, {0.0: before, **by_strength}, NOTHING)


BEFORE = {"psnr": 20.0, "ssim": 0.8, "gmsd": 0.2}


def test_errors_are_compared_as_ratios_for_every_kind_of_metric():
    after = {"psnr": 20 + 20 * np.log10(2), "ssim": 0.9, "gmsd": 0.1}
    assert error_change(BEFORE, after) == pytest.approx(dict.fromkeys(BEFORE, -np.log(2)))
    assert error_change({**BEFORE, "lpips": None}, {**after, "lpips": None}).keys() == BEFORE.keys()


def test_the_strength_with_the_least_error_wins():
    view = scores("fox", BEFORE, s50={"psnr": 20.5, "ssim": 0.82}, s100={"psnr": 20.2, "ssim": 0.81})
    assert choose_strength([view]).strength == 0.5


def test_a_gain_in_one_metric_does_not_offset_a_loss_in_another():
    view = scores("fox", BEFORE, s50={"psnr": 20.1}, s100={"psnr": 26.0, "gmsd": 0.201})
    assert choose_strength([view]).strength == 0.5


def test_a_gain_on_one_scene_does_not_offset_a_loss_on_another():
    views = [scores("fox", BEFORE, s100={"psnr": 26.0}), scores("bonsai", BEFORE, s100={"psnr": 19.9})]
    assert choose_strength(views) == Choice(0.0, 0.0)


def test_single_views_may_get_worse_if_the_scene_mean_improves():
    views = [scores("fox", BEFORE, s100={"psnr": 22.0}), scores("fox", BEFORE, s100={"psnr": 19.9})]
    assert choose_strength(views).strength == 1.0


def test_a_restorer_that_does_not_help_is_switched_off():
    assert choose_strength([scores("fox", BEFORE, s50={"psnr": 19.0}, s100={"psnr": 18.0})]) == Choice(0.0, 0.0)
    assert choose_strength([]) == Choice(0.0, 0.0)


def test_strengths_blend_the_view_and_its_restoration(tmp_path):
    pairs = write_scene(tmp_path)
    restored = torch.full((40, 56, 3), 0.5)
    (score,) = score_views(
        [(pairs, "test", "test0")], lambda image, photos: restored, strengths=STRENGTHS, names=["psnr"]
    )
    clean, degraded = (torch.from_numpy(image) / 255 for image in pairs.load("test", "test0"))
    for strength, values in score.after.items():
        blend = degraded + strength * (restored - degraded)
        assert values["psnr"] == pytest.approx(-10 * np.log10((blend - clean).square().mean().item()), abs=1e-3)
    assert score.after[0.0] == score.before


def test_evaluated_views_are_spread_over_and_along_folders():
    folders = [folder("a"), folder("b")]
    names = {"a": [f"a{i}" for i in range(9)], "b": ["b0"]}
    views = spread_views(folders, lambda f: names[f.scene], 6)
    assert [(f.scene, name) for f, name in views] == [("a", "a1"), ("a", "a4"), ("a", "a7"), ("b", "b0")]
