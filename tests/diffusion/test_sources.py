"""Names of paths and of hub repositories, and loading without side effects."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from diffusers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from nifi_ns.diffusion import WEIGHTS, is_hub_id, reading, resolve
from nifi_ns.errors import NifiError
from nifi_ns.restore import Restorer


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail on any access to the hub."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the hub was accessed")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)


@pytest.mark.parametrize(
    "name",
    ["runs/restorr", "./restorer", "../runs/x", "~/restorer", "/data/restorer", "out/t=199.ckpt", "a/b/c", "abc"],
)
def test_a_name_that_looks_like_a_path_never_accesses_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_hub: None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    assert not is_hub_id(name)
    with pytest.raises(NifiError, match="no backbone") as error:
        resolve(name)
    assert "\n" not in str(error.value)
    with pytest.raises(NifiError, match=r"no restorer in .*expected a restorer\.json .*\.ckpt.* Difix"):
        Restorer.from_pretrained(name)


def test_a_name_that_cannot_be_a_path_is_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("stabilityai/sd-turbo") and resolve("stabilityai/sd-turbo").name == "stabilityai/sd-turbo"
    Path("stabilityai/sd-turbo").mkdir(parents=True)
    assert resolve("stabilityai/sd-turbo").local and not is_hub_id("stabilityai/sd-turbo")


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sd3").mkdir()
    assert resolve("~/sd3").location == str((tmp_path / "sd3").resolve())


def test_a_packaged_backbone_is_found_by_name_and_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [resolve(name).packaged for name in ("nifi-tiny", str(WEIGHTS / "nifi-tiny"))] == [True, True]
    assert not resolve(str(WEIGHTS)).packaged and not resolve("stabilityai/sd-turbo").packaged
    monkeypatch.chdir(tmp_path)
    Path("nifi-tiny").mkdir()  # a restorer whose restorer.json names nifi-tiny does not mean this
    assert resolve("nifi-tiny").packaged and not resolve("./nifi-tiny").packaged and not resolve(".").packaged


def test_one_thread_loads_at_a_time() -> None:
    loading, together = [], []

    def load() -> None:
        with reading("anything"), reading("a part of it"):
            loading.append(None)
            time.sleep(0.05)
            together.append(len(loading))
            loading.pop()

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1, 1, 1]


def test_progress_bars_are_restored_after_loading() -> None:
    try:
        for switch, shown in ((disable_progress_bar, False), (enable_progress_bar, True)):
            switch()
            with reading("anything"):
                assert not is_progress_bar_enabled()
            assert is_progress_bar_enabled() == shown
    finally:
        enable_progress_bar()


def test_importing_loads_no_slow_library() -> None:

    code = "import sys, nifi_ns.diffusion, nifi_ns.restore; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "torch" in loaded and not {"diffusers", "transformers", "peft", "numba"} & set(loaded)
