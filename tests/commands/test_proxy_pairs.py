"""`ns-nifi-pairs proxy`: pairs from folders of photos, and one-line errors."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nifi_ns.commands import pairs, train
from nifi_ns.metrics import METRICS
from nifi_ns.pairs import PairCrops, PairFolder, find_pair_folders
from nifi_ns.restore import Restorer

FAST = ("--degradations", "blur", "jpeg")


def typed(*words: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ns-nifi-pairs", *map(str, words)])
    pairs.entrypoint()


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Function that runs a command line and returns its one-line error. Checks that nothing is written."""

    def call(*words: object) -> str:
        with pytest.raises(SystemExit) as exit_:
            typed(*words, "--output-dir", tmp_path / "pairs", monkeypatch=monkeypatch)
        assert isinstance(exit_.value.code, str) and "\n" not in exit_.value.code
        assert not (tmp_path / "pairs").exists()
        return exit_.value.code

    return call


def write_photos(folder: Path, *names: str, size: tuple[int, int] = (64, 56)) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        ramp = np.linspace(0, 255, size[0])[None, :, None] * rng.random(3)
        noise = rng.integers(0, 60, (size[1], size[0], 3))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((ramp * 0.7 + noise).astype(np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "roses", *(f"{i}.png" for i in range(8)), "more/8.jpg", "more/9.webp", "notes/a.JPG")


def pixels(folder: PairFolder) -> list[np.ndarray]:
    return [image for split in ("train", "test") for name in folder.splits[split] for image in folder.load(split, name)]


def test_photos_become_pairs_that_the_trainer_reads(photos, tmp_path, monkeypatch, capsys):
    typed("proxy", photos, "--output-dir", tmp_path / "out", *FAST, monkeypatch=monkeypatch)
    folders = find_pair_folders([tmp_path / "out"])
    assert [folder.label for folder in folders] == ["roses/proxy-0.25", "roses/proxy-0.5", "roses/proxy-1"]
    errors = []
    for folder in folders:
        assert len(folder.splits["train"]) == 9 and folder.splits["test"] == ("0", "8")  # every eighth
        assert folder.bytes is None and folder.gaussians is None
        changes = []
        for name in folder.splits["train"]:
            clean, degraded = folder.load("train", name)
            assert clean.shape == degraded.shape == (56, 64, 3) and (clean != degraded).any()
            changes.append(np.square(degraded - clean.astype(float)).mean())
        errors.append(np.mean(changes))
        clean = folder.load("train", "1")[0]
        assert (clean == np.asarray(Image.open(photos / "1.png"))).all()
    assert errors == sorted(errors)
    assert PairCrops(folders, size=32, seed=0, length=4)[3]["degraded"].shape == (3, 32, 32)
    assert "roses/proxy-0.25: 9 train + 2 test pairs" in capsys.readouterr().out


def test_the_seed_determines_the_pairs_and_current_pairs_are_kept(photos, tmp_path, monkeypatch):
    def write(where: str, *words: object) -> list[np.ndarray]:
        options = ("--output-dir", tmp_path / where, "--strengths", 0.5, *FAST, *words)
        typed("proxy", photos, *options, monkeypatch=monkeypatch)
        return pixels(PairFolder.open(tmp_path / where / "roses" / "rate_proxy-0.5"))

    first, again, other = write("a"), write("b"), write("c", "--seed", 1)
    assert all((x == y).all() for x, y in zip(first, again, strict=True))
    assert any((x != y).any() for x, y in zip(first, other, strict=True))
    listed = tmp_path / "a" / "roses" / "rate_proxy-0.5" / "pairs.json"
    before = listed.stat().st_mtime_ns
    write("a")
    assert listed.stat().st_mtime_ns == before
    write("a", "--max-side", 40)
    assert PairFolder.open(listed.parent).load("train", "1")[0].shape == (35, 40, 3)


def test_interrupted_pairs_are_not_current(photos, tmp_path, monkeypatch):
    from nifi_ns.commands import _proxy

    calls = []

    def stop(photo, *_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return photo

    monkeypatch.setattr(_proxy, "degrade", stop)
    with pytest.raises(SystemExit, match="interrupted"):
        typed("proxy", photos, "--output-dir", tmp_path / "out", monkeypatch=monkeypatch)
    assert (tmp_path / "out" / "roses" / "rate_proxy-0.25" / "train").is_dir()
    assert not list((tmp_path / "out").rglob("pairs.json"))


@pytest.mark.parametrize("given", [".", "images"])
def test_a_captures_split_is_used_and_its_smaller_copies_are_ignored(tmp_path, monkeypatch, given):
    capture = write_photos(tmp_path / "fox", *(f"images/{i}.png" for i in range(5)), "images_2/0.png")
    held_out = {"val_filenames": ["images/3.png"], "test_filenames": ["./images/4.png"]}
    (capture / "transforms.json").write_text(json.dumps({"frames": [], **held_out}))
    words = ("proxy", capture / given, "--output-dir", tmp_path / "out", "--strengths", 1, *FAST)
    typed(*words, monkeypatch=monkeypatch)
    folder = PairFolder.open(tmp_path / "out" / "fox" / "rate_proxy-1")
    assert folder.splits == {"train": ("0", "1", "2"), "test": ("3", "4")}


def test_photos_are_rotated_by_their_exif_orientation(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    (tmp_path / "turned").mkdir()
    lying = Image.new("RGB", (40, 20), "red")
    lying.paste("blue", (20, 0, 40, 20))
    lying.save(tmp_path / "turned" / "a.jpg", exif=exif)
    words = ("proxy", tmp_path / "turned", "--output-dir", tmp_path / "out", "--strengths", 1, *FAST)
    typed(*words, monkeypatch=monkeypatch)
    folder = PairFolder.open(tmp_path / "out" / "turned" / "rate_proxy-1")
    clean, _ = folder.load("train", "a")
    assert clean.shape == (40, 20, 3)
    assert clean[0, 10].argmax() == 0 and clean[-1, 10].argmax() == 2  # red above blue


def test_mistakes_are_refused_in_one_line_before_writing(photos, tmp_path, refused):
    assert "give one or more folders of photos" in refused("proxy")
    assert "give the config.yml" in refused("run")
    assert "no such config" in refused("run", tmp_path / "config.yml")
    assert "no such folder" in refused("proxy", tmp_path / "absent")
    assert "two folders are called roses" in refused("proxy", photos, write_photos(tmp_path / "b/roses", "a.png"))
    assert "expected different numbers" in refused("proxy", photos, "--strengths", 2)
    (tmp_path / "empty").mkdir()
    assert "no photos" in refused("proxy", photos, tmp_path / "empty")
    small = write_photos(tmp_path / "small", "a.png", size=(40, 12))
    assert "a.png is 40x12, expected at least 16" in refused("proxy", small)
    (photos / "3.png").write_bytes(b"no picture")
    assert "3.png cannot be read" in refused("proxy", photos)


def test_a_restorer_can_be_trained_on_proxies_alone(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    words = ("proxy", photos, "--output-dir", tmp_path / "pairs", "--strengths", 0.5, 1)
    typed(*words, "--degradations", "blotches", monkeypatch=monkeypatch)
    options = ("--steps", 2, "--batch-size", 1, "--crop", 48, "--eval-every", 2, "--eval-views", 2, "--device", "cpu")
    words = ("--pairs", tmp_path / "pairs", "--output-dir", tmp_path / "restorer", *options)
    monkeypatch.setattr(sys, "argv", ["ns-nifi-train", *map(str, words)])
    train.entrypoint()
    assert Restorer.from_pretrained(tmp_path / "restorer", device="cpu").input == "degraded"
    printed = capsys.readouterr().out
    assert "proxy-0.5" in printed and "proxy-1" in printed  # one row each, with the rate instead of bytes
    rows = json.loads((tmp_path / "restorer" / "metrics.json").read_text())["rows"]
    assert {row["rate"] for row in rows} == {"proxy-0.5", "proxy-1"} and set(METRICS) <= set(rows[0])
