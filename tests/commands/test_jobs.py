"""`ns-nifi-pairs jobs`: many runs in a process each, restarted and distributed; and `ns-nifi-pairs pack`."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from nifi_ns.commands import _jobs, pairs
from nifi_ns.commands._jobs import RunOptions, read_jobs, run_jobs
from nifi_ns.pairs import PairWriter, find_pair_folders

made: list[str] = []


def stand_in(config: Path, options: RunOptions) -> dict[str, str]:
    """A job without nerfstudio. The text of `config` is the scene or the kind of failure."""
    scene = config.read_text()
    if scene == "killed":
        os._exit(9)
    if scene == "ended":
        raise SystemExit(1)
    if scene == "wrong":
        raise ValueError("two\nlines")
    mark = f"{scene} {config.stat().st_mtime_ns}"
    root = options.output_dir / scene / "rate_9KB"
    writer = PairWriter(root, scene=scene, rate="9KB", bytes=9, gaussians=1, fingerprint=mark)
    writer.add("train", "a", *torch.rand(2, 16, 16, 3))
    return {str(writer.finish().root): mark}


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of four configs. Jobs run in this process and are recorded in `made`."""
    configs = [tmp_path / name / "config.yml" for name in "abcd"]
    for config in configs:
        config.parent.mkdir()
        config.write_text(config.parent.name)
    (tmp_path / "jobs.txt").write_text("# runs\n" + "\n\n".join(map(str, [*configs, configs[0]])) + "\n")
    made.clear()
    monkeypatch.setattr(_jobs, "_in_own_process", lambda c, o: made.append(c.parent.name) or stand_in(c, o))
    return tmp_path / "jobs.txt"


def typed(*words: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ns-nifi-pairs", *map(str, words)])
    pairs.entrypoint()


def test_jobs_run_once_and_again_after_their_run_changes(listed, tmp_path, monkeypatch) -> None:
    words = ("jobs", listed, "--output-dir", tmp_path / "pairs")
    typed(*words, monkeypatch=monkeypatch)
    assert made == ["a", "b", "c", "d"]  # a only once, though it is listed twice
    manifest = json.loads((tmp_path / "pairs" / "jobs_1_of_1.json").read_text())
    assert {Path(config).parent.name for config in manifest} == set("abcd")
    assert {f.root: f.fingerprint for f in find_pair_folders([tmp_path / "pairs"])} == {
        Path(root): mark for entry in manifest.values() for root, mark in entry["pairs"].items()
    }
    typed(*words, monkeypatch=monkeypatch)
    assert made == ["a", "b", "c", "d"]
    (tmp_path / "b" / "scene.nifi").write_text("a new scene file")
    (tmp_path / "pairs" / "c" / "rate_9KB" / "pairs.json").unlink()
    typed(*words, monkeypatch=monkeypatch)
    assert made == ["a", "b", "c", "d", "b", "c"]
    typed(*words, "--prune-levels", 3, monkeypatch=monkeypatch)
    assert made[6:] == ["a", "b", "c", "d"]


def test_parts_cover_the_list_and_skip_jobs_done_by_others(listed, tmp_path) -> None:
    parts = [read_jobs(listed, f"{k}/3") for k in (1, 2, 3)]
    assert [[config.parent.name for config in part] for part in parts] == [["a", "d"], ["b"], ["c"]]
    options = RunOptions(tmp_path / "pairs", None, True)
    for k, part in enumerate(parts, 1):
        run_jobs(part, options, f"{k}/3")
    run_jobs(read_jobs(listed, "1/1"), options, "1/1")
    assert sorted(made) == ["a", "b", "c", "d"]
    failed = json.loads((tmp_path / "pairs" / "jobs_1_of_3.json").read_text())
    failed = {config: {"made_of": entry["made_of"], "error": "once"} for config, entry in failed.items()}
    (tmp_path / "pairs" / "jobs_1_of_4.json").write_text(json.dumps(failed))
    run_jobs(read_jobs(listed, "1/1"), options, "1/1")
    assert len(made) == 4  # the job that failed in another list is done now


def test_an_interrupted_list_is_resumed(listed, tmp_path, monkeypatch) -> None:
    words = ("jobs", listed, "--output-dir", tmp_path / "pairs")
    job = _jobs._in_own_process

    def interrupted(config: Path, options: RunOptions) -> dict[str, str]:
        if config.parent.name == "c":
            raise KeyboardInterrupt
        return job(config, options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="interrupted"):
        patch.setattr(_jobs, "_in_own_process", interrupted)
        typed(*words, monkeypatch=patch)
    typed(*words, monkeypatch=monkeypatch)
    assert made == ["a", "b", "c", "d"]


def test_a_job_that_fails_or_is_killed_does_not_end_the_others(listed, tmp_path, monkeypatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(_jobs, "_make", stand_in)
    (tmp_path / "b" / "config.yml").write_text("killed")
    (tmp_path / "c" / "config.yml").write_text("wrong")
    words = ("jobs", listed, "--output-dir", tmp_path / "pairs")
    with pytest.raises(SystemExit, match=r"2 of 4 jobs failed.*jobs_1_of_1\.json.*b/config\.yml: its process was kil"):
        typed(*words, monkeypatch=monkeypatch)
    assert {f.scene for f in find_pair_folders([tmp_path / "pairs"])} == {"a", "d"}
    manifest = json.loads((tmp_path / "pairs" / "jobs_1_of_1.json").read_text())
    assert manifest[str(tmp_path / "c" / "config.yml")]["error"] == "ValueError: two lines"
    (tmp_path / "b" / "config.yml").write_text("b")
    (tmp_path / "c" / "config.yml").write_text("ended")
    with pytest.raises(SystemExit, match=r"1 of 4 jobs failed.*c/config\.yml: SystemExit: 1"):
        typed(*words, monkeypatch=monkeypatch)
    assert {f.scene for f in find_pair_folders([tmp_path / "pairs"])} == {"a", "b", "d"}


def test_runs_with_the_same_name_are_refused(listed, tmp_path, monkeypatch) -> None:
    (tmp_path / "d" / "config.yml").write_text("b")
    with pytest.raises(SystemExit, match=r"d/config\.yml: its pairs overwrote those of \S*b/config\.yml: give"):
        typed("jobs", listed, "--output-dir", tmp_path / "pairs", monkeypatch=monkeypatch)


def test_mistakes_are_refused_in_one_line_before_any_job(listed, tmp_path, monkeypatch) -> None:
    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as exit_:
            typed(*words, "--output-dir", tmp_path / "pairs", monkeypatch=monkeypatch)
        assert isinstance(exit_.value.code, str) and "\n" not in exit_.value.code
        return exit_.value.code

    assert "no such list of jobs" in refused("jobs", tmp_path / "absent")
    for part in ("0/3", "4/3", "3", "a/b"):
        assert f"--part {part}: expected K/N" in refused("jobs", listed, "--part", part)
    listed.write_text(f"{tmp_path}/a/config.yml\n{tmp_path}/e/config.yml\n")
    assert "jobs.txt, line 2: no such config" in refused("jobs", listed)
    assert not made
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "jobs_1_of_2.json").write_text('{"a": 3}')
    listed.write_text("")
    assert "is not a manifest of jobs" in refused("jobs", listed)


def test_folders_are_packed_into_shards(tmp_path, monkeypatch) -> None:
    for scene in "ab":
        writer = PairWriter(
            tmp_path / "pairs" / scene / "rate_9KB", scene=scene, rate="9KB", bytes=9, gaussians=1, fingerprint="f"
        )
        for name in "xyz":
            writer.add("train", name, *torch.rand(2, 32, 32, 3))
        writer.finish()
    words = ("pack", tmp_path / "pairs", "--output-dir", tmp_path / "shards", "--shard-size", "20KB")
    typed(*words, monkeypatch=monkeypatch)
    assert len(list((tmp_path / "shards").glob("pairs-*.tar"))) > 1
    assert [f.label for f in find_pair_folders([tmp_path / "shards"])] == ["a/9KB", "b/9KB"]
    with pytest.raises(SystemExit, match=r"pairs-\d+\.tar already exists"):
        typed(*words, monkeypatch=monkeypatch)
    with pytest.raises(SystemExit, match="give one or more folders of pairs"):
        typed("pack", monkeypatch=monkeypatch)
