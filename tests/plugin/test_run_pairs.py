"""Pairs of a run at several pruning levels, stored beside those of its scene file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nifi_ns.commands.pairs import RunOptions, RunPairs
from nifi_ns.errors import NifiError
from nifi_ns.pairs import PairFolder, find_pair_folders
from nifi_ns.plugin import run_pairs
from nifi_ns.plugin.run_pairs import FEWEST, pruned_counts, write_pruned_pairs
from nifi_ns.plugin.runs import load_run


def test_levels_are_equal_factors_apart_and_never_below_the_fewest():
    assert pruned_counts(8 * FEWEST, 3) == [4096, 8192, 16384]
    assert pruned_counts(36_244, 1) == [4096]
    for count in (4097, 4100, 5000, 36_244, 3_000_000):
        for levels in range(1, 12):
            counts = pruned_counts(count, levels)
            assert counts[0] == FEWEST and counts[-1] < count and len(counts) <= levels
            assert counts == sorted(set(counts))
    assert pruned_counts(4099, 5) == [4096, 4097, 4098]  # fewer levels, because equal ones are merged


def test_a_scene_that_is_too_small_is_refused_in_one_line(run_config: Path, tmp_path: Path) -> None:
    for count in (0, 1, FEWEST):
        with pytest.raises(NifiError, match="needs more than 4,096"):
            pruned_counts(count, 3)
    with pytest.raises(NifiError, match="needs more than 4,096"):  # the run has a few hundred
        RunPairs(configs=(run_config,), pairs=RunOptions(tmp_path, prune_levels=3)).main()
    with pytest.raises(NifiError, match="--prune-levels is 0"):
        RunPairs(configs=(run_config,), pairs=RunOptions(tmp_path, prune_levels=0)).main()
    assert not list(tmp_path.iterdir())


def test_pruning_levels_are_written_as_pairs(run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_pairs, "FEWEST", 40)
    run = load_run(run_config)
    counts = pruned_counts(len(run.uncompressed), 3)
    written = list(write_pruned_pairs(run_config, 3, tmp_path))
    assert [folder.gaussians for folder in written] == counts and counts[0] == 40
    assert [folder.label for folder in written] == [f"tiny/pruned-{count}" for count in counts]
    assert [folder.bytes for folder in written] == [run.uncompressed[torch.arange(count)].ply_size for count in counts]
    assert {folder.label for folder in find_pair_folders([tmp_path], "referenced")} == {f.label for f in written}
    errors = []
    for folder in written:
        assert folder.attended_photos["train"].keys() == set(folder.splits["train"])
        for name, others in folder.attended_photos["train"].items():
            assert name not in others and len(set(others)) == len(others) and set(others) <= set(folder.splits["train"])
        assert all(len(folder.photos("test", name, 2)) == 2 for name in folder.splits["test"])
        assert len(folder.splits["train"]) == 8 and len(folder.splits["test"]) == 2
        pictures = [folder.load("train", name) for name in folder.splits["train"]]
        errors.append(np.mean([np.square(d.astype(float) - c).mean() for c, d in pictures]))
    assert errors[0] > errors[1] > errors[2]  # the most important gaussians are kept
    listed = written[0].root / "pairs.json"
    before = listed.stat().st_mtime_ns
    monkeypatch.setattr(run_pairs, "measure_importance", lambda *_, **__: pytest.fail("pairs were written again"))
    assert list(write_pruned_pairs(run_config, 3, tmp_path)) == written
    assert listed.stat().st_mtime_ns == before


def test_pairs_of_scene_file_and_pruning_levels_are_stored_side_by_side(
    run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_pairs, "FEWEST", 100)
    monkeypatch.setenv("COLUMNS", "300")
    for levels in (None, 1):
        RunPairs(configs=(run_config,), pairs=RunOptions(tmp_path, levels, referenced=False)).main()
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == ["rate_4KB", "rate_pruned-100"]
    assert "tiny/pruned-100: 8 train + 2 test pairs" in capsys.readouterr().out
    shown = load_run(run_config).scene_file
    assert shown is not None
    assert PairFolder.open(tmp_path / "tiny" / "rate_4KB").bytes == shown.stat().st_size
