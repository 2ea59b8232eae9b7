import io
import json
import os
import re
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import hacpp_stand_in as stand_in
import pytest

from nifi_ns import results
from nifi_ns.commands._external import import_run
from nifi_ns.commands.compress import Hacpp
from nifi_ns.compress.external import ExternalCodec, HacppSettings, hacpp, read_log, run
from nifi_ns.compress.external import _external as external
from nifi_ns.compress.external._external import Step, parse_step
from nifi_ns.compress.external._hacpp import count_bytes
from nifi_ns.errors import NifiError
from nifi_ns.pairs import PairFolder, find_pair_folders


@pytest.fixture
def settings(tmp_path: Path) -> HacppSettings:
    return stand_in.make(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return stand_in.make_data(tmp_path)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "0.5"


@pytest.fixture
def codec(settings: HacppSettings, data: Path, output: Path) -> ExternalCodec:
    return hacpp(settings, data, output)


def _runs(settings: HacppSettings) -> list[dict]:
    assert settings.root is not None
    path = settings.root / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_results_of_hacpp_become_pairs_and_rows(codec: ExternalCodec, output: Path):
    assert run(codec, output)
    folder, rows = import_run(codec, output)
    assert folder == PairFolder.open(output / "pairs" / "garden" / "rate_hacpp-0.5")
    assert find_pair_folders([output / "pairs"]) == [folder]
    assert folder.splits == {"train": tuple(f"{i:05d}" for i in range(4)), "test": ("00000", "00001")}
    assert folder.gaussians is None
    assert folder.bytes is not None
    assert abs(folder.bytes - stand_in.BYTES) <= 53  # the log gives the MLPs in 2^20 bytes to four decimals
    clean, degraded = folder.load("test", "00001")
    assert clean.shape == (40, 56, 3) and (clean == 60).all() and (degraded == 64).all()
    assert rows == results.load(output / "results.json")
    assert [r.image for r in rows] == ["00000", "00001", None]
    assert all(r.variant == "compressed" and r.bytes == folder.bytes and r.more["codec"] == "HAC++" for r in rows)
    assert rows[-1].metrics["psnr"] == pytest.approx(36.0896, abs=1e-3)  # 20 log10(255 / 4)


@pytest.mark.parametrize(
    ("dataset", "lmbda", "voxel_size", "mask_lr"),
    [
        ("mip360", 0.001, 0.001, 0.0005),
        ("mip360", 0.5, 0.001, 0.0015),
        ("tandt", 0.004, 0.01, 0.0004),
        ("deepblending", 0.004, 0.005, 0.00032),
    ],
)
def test_arguments_are_those_of_the_scripts_of_hacpp(settings, data, output, dataset, lmbda, voxel_size, mask_lr):
    changed = replace(settings, dataset=dataset, lmbda=lmbda, arguments="--resolution 4")
    run(hacpp(changed, data, output), output)
    (given,) = _runs(settings)
    assert given["source_path"] == str(data) and given["model_path"] == str(output / "model")
    assert given["eval"] and given["lod"] == 0 and given["update_init_factor"] == 16 and given["resolution"] == 4
    assert given["iterations"] == 1000 and given["test_iterations"] == given["save_iterations"] == [1000]
    assert (given["lmbda"], given["voxel_size"]) == (lmbda, voxel_size)
    assert given["mask_lr_final"] == pytest.approx(mask_lr)


def test_a_finished_run_is_not_repeated_and_an_unfinished_one_starts_over(codec, settings, output):
    stand_in.behave(settings, "crash")
    with pytest.raises(NifiError, match=r"HAC\+\+ ended by SIGSEGV: .*log\.txt"):
        run(codec, output)
    (output / "model" / "bitstreams" / "feat_9_9.b").write_bytes(b"of the crashed run")
    stand_in.behave(settings, "")
    assert run(codec, output)
    first, _ = import_run(codec, output)
    written = (first.root / "pairs.json").stat().st_mtime_ns
    assert not run(codec, output)
    again, _ = import_run(codec, output)
    assert again == first and (first.root / "pairs.json").stat().st_mtime_ns == written
    assert len(_runs(settings)) == 2


def test_other_settings_do_not_overwrite_a_run(codec, settings, data, output):
    run(codec, output)
    with pytest.raises(NifiError, match="a run with other settings"):
        run(hacpp(replace(settings, lmbda=1.0), data, output), output)


def test_a_folder_with_other_files_is_refused(codec, output):
    output.mkdir(parents=True)
    (output / "thesis.tex").write_text("")
    with pytest.raises(NifiError, match="holds other files"):
        run(codec, output)
    assert [path.name for path in output.iterdir()] == ["thesis.tex"]


def test_a_failure_is_reported_with_the_last_lines_of_the_log(codec, settings, output):
    stand_in.behave(settings, "fail")
    with pytest.raises(NifiError, match=r"ended with status 1: .*CUDA out of memory.*the full log is .*log\.txt") as e:
        run(codec, output)
    assert "\n" not in str(e.value)
    assert "Traceback" in read_log(output)


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("garbage", r"log is garbled: .*"),
        ("parts", r"log is garbled: its parts are"),
        ("stale", r"feat_\*\.b has 41500 bytes in 3 files, but HAC\+\+'s log says"),
        ("no-renders", r"wrote no renders to .*test.*renders"),
        ("no-photo", r"wrote 00001 to .*renders but not to .*gt"),
        ("size", r"train view 00001 is 56x39 but its photo \S+ is 56x40"),
    ],
)
def test_inconsistent_results_are_not_imported(codec, settings, output, behaviour, message):
    stand_in.behave(settings, behaviour)
    run(codec, output)
    with pytest.raises(NifiError, match=message):
        import_run(codec, output)
    assert not (output / "results.json").exists()
    assert not list(output.glob("pairs/**/pairs.json"))


def test_training_views_without_renders_are_omitted(codec, output, capsys):
    run(codec, output)
    shutil.rmtree(output / "model" / "train")
    folder, rows = import_run(codec, output)
    assert folder.splits["train"] == () and len(folder.splits["test"]) == 2 and len(rows) == 3


def test_bytes_are_counted_from_the_last_sizes_of_the_log(codec, output):
    run(codec, output)
    log = read_log(output)
    streams = output / "model" / "bitstreams"
    assert count_bytes(streams, log.replace("Estimated", "Encoded", 1)) == count_bytes(streams, log)
    with pytest.raises(NifiError, match="no line 'Encoded sizes in MB'"):
        count_bytes(streams, log.replace("Encoded", "Estimated"))
    (streams / "hash.b").unlink()
    with pytest.raises(NifiError, match=r"hash\.b has 0 bytes in 0 files"):
        count_bytes(streams, log)


@pytest.mark.parametrize("behaviour", ["hang", "deaf"])
def test_ctrl_c_ends_the_command_and_all_processes_it_started(codec, settings, output, behaviour, monkeypatch):
    monkeypatch.setattr(external, "_GRACE_SECONDS", 0.3)
    stand_in.behave(settings, behaviour)
    pids = settings.root / "pids"

    def interrupt() -> None:
        while not (pids.exists() and len(pids.read_text().split()) == 2):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    # tests that run in the background may have interrupts ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run(codec, output)
    finally:
        signal.signal(signal.SIGINT, before)
    for pid in map(int, pids.read_text().split()):
        assert not _alive(pid)
    assert json.loads((output / "run.json").read_text())["status"] == "started"
    stand_in.behave(settings, "")
    assert run(codec, output)


def _alive(pid: int) -> bool:
    """Return whether a process runs; an orphan that nothing reaps stays a zombie."""
    for _ in range(100):
        try:
            if re.search(r"^State:\s+[ZX]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE):
                return False
        except OSError:
            return False
        time.sleep(0.02)
    return True


def _without(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root, data: _without(root / "train.py"), r"--root .* has no train\.py"),
        (lambda root, data: _without(data / "images"), r"has no photos in images/"),
        (lambda root, data: _without(data / "sparse" / "0" / "points3D.bin"), r"no sparse/0/points3D\.bin or \.txt"),
        (
            lambda root, data: _without(root.parent / "env" / "bin" / "tmc3"),
            r"tmc3, which HAC\+\+ needs, is not on PATH",
        ),
        (lambda root, data: _without(root.parent / "env" / "bin" / "python"), r"no python at .*env/bin/python"),
        (lambda root, data: (root / "behaviour").write_text("no-cuda"), r"torch 1\.12\.1 sees no CUDA device"),
        (lambda root, data: (root / "behaviour").write_text("no-module"), r"No module named 'simple_knn'; give"),
        (lambda root, data: _without(root / "gaussian_renderer.py"), r"No module named 'gaussian_renderer'"),
    ],
)
def test_problems_are_reported_before_any_work(codec, settings, data, output, change, message):
    change(settings.root, data)
    with pytest.raises(NifiError, match=message) as error:
        run(codec, output)
    assert "\n" not in str(error.value)
    assert not output.exists() and not _runs(settings)


def test_an_output_inside_the_checkout_is_refused(settings, data):
    output = settings.root / "outputs" / "a"
    with pytest.raises(NifiError, match="is inside --root"):
        run(hacpp(settings, data, output), output)


def test_progress_bars_are_read():
    line = "Training progress:  33%|███▎      | 10000/30000 [03:12<06:25, 51.9it/s, Loss=0.0351234]"
    assert parse_step(line) == Step("Training progress", 10000, 30000, 0.0351234)
    assert parse_step("Rendering progress: 100%|███| 3/3 [00:01<00:00,  2.9it/s]") == Step(
        "Rendering progress", 3, 3, None
    )
    assert parse_step("[ITER 10000] Saving Gaussians") is None
    assert parse_step("") is None


def test_output_that_is_not_text_is_logged(tmp_path):
    command = (
        "/bin/sh",
        "-c",
        r"printf '\377\376 x: 1%%|\r\n a:  5%%|#| 1/2 [Loss=nan.e]\r no end'; mkdir -p t; exit 3",
    )
    codec = ExternalCodec("X", "s", "r", command, {"test": (tmp_path, tmp_path)}, lambda log: 0, directory=tmp_path)
    with pytest.raises(NifiError, match=r"X ended with status 3: .*no end"):
        run(codec, tmp_path / "out")
    log = io.BytesIO()
    assert external._stream(codec, log) == 3 and log.getvalue().endswith(b"no end")


def test_the_command_runs_hacpp_once_and_prints_a_summary(settings, data, output, capsys):
    Hacpp(data=data, hacpp=settings, output=output).main()
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 held-out views" in printed and "4 train + 2 test pairs" in printed and "36.09" in printed
    Hacpp(data=data, hacpp=settings, output=output).main()
    assert "has already finished" in " ".join(capsys.readouterr().out.split())
    assert len(_runs(settings)) == 1


def test_a_missing_root_is_refused(data):
    with pytest.raises(NifiError, match="give --root"):
        Hacpp(data=data).main()


@pytest.mark.parametrize("name", ["lmbda", "voxel_size", "mask_lr_final", "iterations"])
def test_settings_must_be_positive(name):
    with pytest.raises(NifiError, match="expected more than 0"):
        replace(HacppSettings(), **{name: 0})
