"""`ns-nifi-selftest`: steps that hang, fail or pass, and a complete selftest."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from nifi_ns.commands import _checks, selftest
from nifi_ns.commands._checks import Check, run_checks
from nifi_ns.commands._steps import Journal, Step
from nifi_ns.commands._watch import Limits

LIMITS = Limits(time=20, silence=2)


@pytest.fixture(autouse=True)
def _found_by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[1] / 'support'}:{Path(__file__).parents[2]}")


def steps(folder: Path, *names: str) -> list[Step]:
    return [Step(name, ("stand-in", str(folder / name)), folder / name, f"stand_ins:{name}") for name in names]


def run(folder: Path, *names: str, limits: Limits = LIMITS) -> tuple[bool, dict, dict]:
    passed = Journal(folder, limits, Console(quiet=True)).run(steps(folder, *names))
    verdict = json.loads((folder / "selftest_manifest.json").read_text())
    assert verdict["result"] == ("PASS" if passed else "FAIL")
    return passed, verdict, json.loads((folder / "run_manifest.json").read_text())


def test_steps_that_pass_leave_logs_and_manifests_and_no_diagnostics(tmp_path: Path) -> None:
    passed, verdict, manifest = run(tmp_path, "passes")
    assert passed and verdict["steps"][0]["attempts"] == 1
    assert (tmp_path / "logs" / "passes.log").read_text() == "working\n"
    assert not list((tmp_path / "diagnostics").iterdir())
    (command,) = manifest["commands"]
    assert command["ending"] == "done" and command["exit_code"] == 0 and command["peak_memory"] > 0
    assert manifest["versions"]["torch"] and manifest["versions"]["python"]


def test_a_silent_hang_is_stopped_twice_and_its_stack_written(tmp_path: Path) -> None:
    started = time.monotonic()
    passed, verdict, manifest = run(tmp_path, "hangs", "passes")
    assert not passed and time.monotonic() - started < 2 * LIMITS.time
    entry = verdict["steps"][0]
    assert [(c["ending"], c["exit_code"]) for c in manifest["commands"]] == [("silent", -15)] * 2
    assert entry["attempts"] == 2 and "hung" in entry["what_to_do"]
    assert verdict["steps"][1] == {"step": "passes", "result": "NOT RUN"}
    assert len(entry["diagnostics"]) == 2
    told = (tmp_path / entry["diagnostics"][0]).read_text()
    for expected in ("_waits_for_ever", "_sleeps", "stand_ins:hangs", "time.sleep(600)", "GB are free", "nvidia-smi"):
        assert expected in told, told
    helper = int((tmp_path / "hangs.pid").read_text())
    assert not psutil.pid_exists(helper) or psutil.Process(helper).status() == psutil.STATUS_ZOMBIE


def test_a_step_that_fails_once_passes_on_the_second_attempt(tmp_path: Path) -> None:
    passed, verdict, manifest = run(tmp_path, "fails_once", "passes")
    assert passed and [c["exit_code"] for c in manifest["commands"]] == [1, 0, 0]
    assert verdict["steps"][0]["attempts"] == 2 and "second attempt" in verdict["steps"][0]["what_to_do"]
    assert "RuntimeError: the first attempt" in (tmp_path / "diagnostics" / "fails_once_1.txt").read_text()


def test_advice_is_derived_from_the_log(tmp_path: Path) -> None:
    passed, verdict, _ = run(tmp_path, "needs_a_disk")
    assert not passed and "free disk space" in verdict["what_to_do"]


def test_the_stack_of_a_crash_is_written(tmp_path: Path) -> None:
    passed, _, manifest = run(tmp_path, "crashes")
    assert not passed and manifest["commands"][0]["exit_code"] == -11
    assert "in crashes" in (tmp_path / "diagnostics" / "crashes_1.txt").read_text()


def test_work_without_output_is_not_silent(tmp_path: Path) -> None:
    passed, verdict, _ = run(tmp_path, "works_in_silence")
    assert passed and verdict["steps"][0]["attempts"] == 1 and verdict["steps"][0]["seconds"] > LIMITS.silence


def test_a_step_with_output_is_stopped_at_the_time_limit(tmp_path: Path) -> None:
    passed, verdict, manifest = run(tmp_path, "chatters", limits=Limits(time=3, silence=2))
    assert not passed and "--time-limit" in verdict["what_to_do"]
    assert [c["ending"] for c in manifest["commands"]] == ["late", "late"]
    assert "in chatters" in (tmp_path / "diagnostics" / "chatters_2.txt").read_text()


def test_a_step_that_writes_no_new_result_fails(tmp_path: Path) -> None:
    (tmp_path / "forgets").write_text("old")
    passed, verdict, _ = run(tmp_path, "forgets")
    assert not passed and "no result" in verdict["what_to_do"]


def test_a_command_that_is_not_installed_is_named(tmp_path: Path) -> None:
    step = Step("absent", ("ns-nifi-absent",), tmp_path / "x")
    assert not Journal(tmp_path, LIMITS, Console(quiet=True)).run([step])
    assert (
        "ns-nifi-absent is not installed" in json.loads((tmp_path / "selftest_manifest.json").read_text())["what_to_do"]
    )


# -- the checks ------------------------------------------------------------------------------------------------------


def test_a_check_that_raises_is_reported_as_a_problem_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Path) -> tuple[_checks.Level, str]:
        raise ImportError("libfoo.so:\n  no such file")

    monkeypatch.setattr(_checks, "_CHECKS", {"broken": broken, "Python": _checks._python})
    found = run_checks(tmp_path)
    assert found[0] == Check("broken", "problem", "ImportError: libfoo.so: no such file", _checks._REINSTALL)
    assert found[1].level == "OK"


def test_missing_weights_compiler_and_ffmpeg_are_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert _checks._compiler(tmp_path)[0] == _checks._ffmpeg(tmp_path)[0] == _checks._metrics(tmp_path)[0] == "note"
    assert _checks._metrics(tmp_path)[1].startswith("not downloaded")
    for name in ("alexnet-owt-7be5be79.pth", "vgg16-397923af.pth", "dists_weights.pt"):
        assert name in _checks._metrics(tmp_path)[-1]
        file = tmp_path / "hub" / "checkpoints" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert _checks._metrics(tmp_path)[0] == "OK"


@pytest.mark.parametrize(("free", "level"), [(10**8, "problem"), (10**9, "note"), (10**11, "OK")])
def test_a_full_disk_is_reported(free: int, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(_checks.shutil, "disk_usage", lambda _: usage)
    assert _checks._disk(tmp_path / "not" / "there")[0] == level


def test_files_of_the_user_are_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").touch()
    monkeypatch.setattr(sys, "argv", ["ns-nifi-selftest", "--output-dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="is in use"):
        selftest.entrypoint()
    assert (tmp_path / "runs" / "mine").exists()


# -- a complete selftest ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_complete_selftest_passes_twice_in_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "selftest"
    words = [sys.executable, "-m", "nifi_ns.commands.selftest", "--output-dir", str(folder)]
    finished = subprocess.run(words, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.splitlines()[-1].startswith("PASS")
    verdict = json.loads((folder / "selftest_manifest.json").read_text())
    names = ["checks", "capture", "build", "pairs", "train", "evaluate"]
    assert [(entry["step"], entry["result"]) for entry in verdict["steps"]] == [(name, "PASS") for name in names]
    assert sorted(log.stem for log in (folder / "logs").iterdir()) == sorted(names)
    assert (folder / "metrics.csv").is_file()
    rows = json.loads((folder / "metrics.json").read_text())["rows"]
    assert {row["variant"] for row in rows} >= {"uncompressed", "compressed", "restored"}
    checks = {check["name"]: check["level"] for check in json.loads((folder / "checks.json").read_text())["checks"]}
    assert len(checks) == len(_checks._CHECKS) and "problem" not in checks.values()
    # started again on the same photos, it replaces its output
    again = subprocess.run([*words, "--data", str(tmp_path / "absent")], capture_output=True, text=True, check=False)
    assert again.returncode == 1 and "no transforms.json" in again.stderr
    assert (folder / "metrics.json").is_file(), "a mistake in the command line removes nothing"
