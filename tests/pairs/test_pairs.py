"""Pair folders: writing, finding, checking and caching them, and the stream of crops."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.pairs import (
    PairCrops,
    PairFolder,
    PairWriter,
    find_pair_folders,
    is_current,
    matching_scenes,
    split_validation,
)
from nifi_ns.pairs._folders import SPLITS


def write(root, scene="fox", rate="25KB", train=6, test=2, size=(40, 56), referenced=False, seed=0) -> PairFolder:
    """Write pairs of random photos. `degraded` is the darkened photo, `referenced` the brightened photo."""
    generator = torch.Generator().manual_seed(seed)
    folder = root / scene / f"rate_{rate}"
    writer = PairWriter(folder, scene=scene, rate=rate, bytes=25_003, gaussians=3_000, fingerprint=f"f{seed}")
    for split, count in zip(SPLITS, (train, test), strict=True):
        for i in range(count):
            photo = torch.rand(*size, 3, generator=generator)
            writer.add(split, f"{split}{i}", photo, photo * 0.5, photo * 0.5 + 0.5 if referenced else None)
    return writer.finish()


def test_written_pairs_are_read_back(tmp_path):
    written = write(tmp_path, referenced=True)
    folder = PairFolder.open(written.root)
    assert folder == written
    assert folder.splits == {"train": tuple(f"train{i}" for i in range(6)), "test": ("test0", "test1")}
    clean, degraded = folder.load("train", "train0")
    assert clean.shape == (40, 56, 3) and clean.dtype == np.uint8
    assert np.abs(degraded - clean / 2).max() <= 1
    assert np.abs(folder.load("train", "train0", "referenced")[1] - (clean / 2 + 127.5)).max() <= 1


def test_folders_are_found_by_rate_by_scene_and_by_root(tmp_path):
    roots = {write(tmp_path, rate=rate).root for rate in ("10KB", "25KB")}
    for paths in (roots, [tmp_path / "fox"], [tmp_path], [tmp_path, tmp_path / "fox"]):
        assert {folder.root for folder in find_pair_folders(paths)} == roots


def test_an_unfinished_folder_is_not_current(tmp_path):
    root = write(tmp_path).root
    assert is_current(root, "f0") and not is_current(root, "other")
    PairWriter(root, scene="fox", rate="25KB", bytes=1, gaussians=1, fingerprint="f0").add(
        "train", "a", *torch.rand(2, 8, 8, 3)
    )
    assert not is_current(root, "f0")
    with pytest.raises(NifiError, match="no pairs"):
        PairFolder.open(root)


def test_writing_again_removes_old_images(tmp_path):
    write(tmp_path, train=6, referenced=True)
    folder = write(tmp_path, train=3, seed=1)
    assert len(list((folder.root / "train" / "clean").iterdir())) == 3
    with pytest.raises(NifiError, match=r"referenced.*missing"):
        find_pair_folders([tmp_path], inputs="referenced")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b"])
def test_a_name_with_folders_is_refused(tmp_path, name):
    writer = PairWriter(tmp_path / "x", scene="x", rate="1KB", bytes=1, gaussians=1, fingerprint="")
    with pytest.raises(ValueError, match="plain file name"):
        writer.add("train", name, *torch.rand(2, 8, 8, 3))


def test_a_repeated_name_or_different_sizes_are_refused(tmp_path):
    writer = PairWriter(tmp_path / "x", scene="x", rate="1KB", bytes=1, gaussians=1, fingerprint="")
    writer.add("train", "a", *torch.rand(2, 8, 8, 3))
    with pytest.raises(ValueError, match="already"):
        writer.add("train", "a", *torch.rand(2, 8, 8, 3))
    with pytest.raises(ValueError, match="expected"):
        writer.add("train", "b", torch.rand(8, 8, 3), torch.rand(8, 9, 3))


def test_errors_name_the_file_in_one_line(tmp_path):
    def message(error: type[NifiError], path=tmp_path) -> str:
        with pytest.raises(error) as caught:
            find_pair_folders([path])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such folder" in message(NifiError, tmp_path / "absent")
    assert "no pairs.json" in message(NifiError)
    folder = write(tmp_path)
    photo = folder.path("train", "clean", "train3")
    Image.new("RGB", (8, 8)).save(photo)
    assert "train3 is 8x8 in clean but 56x40 in degraded" in message(NifiError)
    photo.write_bytes(b"not a png")
    assert str(photo) in message(CorruptFileError)
    photo.unlink()
    assert str(photo) in message(NifiError)


@pytest.mark.parametrize("change", ["{", '{"version": 1}', '{"version": 1, "splits": 3}', "[]"])
def test_a_damaged_pairs_json_is_named_in_the_error(tmp_path, change):
    path = write(tmp_path).root / "pairs.json"
    path.write_text(change)
    with pytest.raises(CorruptFileError, match="not a list of pairs"):
        find_pair_folders([tmp_path])


def test_another_version_is_refused(tmp_path):
    path = write(tmp_path).root / "pairs.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 9}))
    with pytest.raises(NifiError, match="version 9"):
        find_pair_folders([tmp_path])


def test_a_truncated_image_is_named_in_the_error(tmp_path):
    folder = write(tmp_path)
    path = folder.path("train", "clean", "train0")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CorruptFileError, match="train0"):
        folder.load("train", "train0")


# -- crops -----------------------------------------------------------------------------------------------------------


def test_crop_i_depends_on_the_seed_and_i_alone(tmp_path):
    folders = [write(tmp_path)]
    forward = PairCrops(folders, size=16, seed=3, length=20)
    backward = PairCrops(folders, size=16, seed=3, length=30, cache_bytes=1)
    for i in reversed(range(20)):
        assert all(torch.equal(forward[i][key], backward[i][key]) for key in ("clean", "degraded"))
    other = PairCrops(folders, size=16, seed=4, length=20)
    assert not any(torch.equal(forward[i]["clean"], other[i]["clean"]) for i in range(20))


def test_crops_of_a_pair_show_the_same_place(tmp_path):
    crops = PairCrops([write(tmp_path)], size=16, seed=0, length=50)
    for i in range(50):
        assert crops[i]["clean"].shape == (3, 16, 16)
        assert torch.allclose(crops[i]["degraded"], crops[i]["clean"] / 2, atol=1 / 255)


def test_rates_are_drawn_in_proportion_to_their_weights(tmp_path):
    dark = write(tmp_path, rate="10KB")
    for name in dark.splits["train"]:
        Image.new("RGB", (56, 40)).save(dark.path("train", "degraded", name))
    crops = PairCrops([dark, write(tmp_path, rate="25KB")], size=8, seed=0, length=600, rate_weights={"10KB": 3.0})
    share = sum(bool(crops[i]["degraded"].max() == 0) for i in range(600)) / 600
    assert share == pytest.approx(0.75, abs=0.06)


def test_test_views_and_held_out_views_are_never_drawn(tmp_path):
    folder = write(tmp_path)
    for split, name in [("test", "test0"), ("test", "test1"), ("train", "train2")]:
        Image.new("RGB", (56, 40), "red").save(folder.path(split, "clean", name))
    names = {"fox": [name for name in folder.splits["train"] if name != "train2"]}
    crops = PairCrops([folder], size=8, seed=0, length=200, names=names)
    assert all(crops[i]["clean"][1:].max() > 0 for i in range(200))


def test_invalid_crop_options_are_refused(tmp_path):
    folders = [write(tmp_path)]
    with pytest.raises(NifiError, match="smaller than a crop of 41"):
        PairCrops(folders, size=41, seed=0, length=1)
    with pytest.raises(NifiError, match="no pairs have the rate '1MB'"):
        PairCrops(folders, size=8, seed=0, length=1, rate_weights={"1MB": 1.0})
    with pytest.raises(NifiError, match="no training pairs are left"):
        PairCrops(folders, size=8, seed=0, length=1, rate_weights={"25KB": 0.0})


def test_validation_holds_out_the_same_views_at_every_rate(tmp_path):
    folders = [write(tmp_path, rate=rate, train=24) for rate in ("10KB", "25KB")] + [
        write(tmp_path, scene="few", train=3)
    ]
    train, validation = split_validation(folders)
    assert len(validation["fox"]) == 3 and len(train["fox"]) == 21
    assert not set(train["fox"]) & set(validation["fox"])
    assert validation["few"] == [] and len(train["few"]) == 3


def test_held_out_scenes_validate_and_all_views_of_others_train(tmp_path):
    folders = [write(tmp_path, scene=scene, train=8) for scene in ("fox", "garden1", "garden2")]
    held_out = matching_scenes(folders, ["garden*"])
    assert held_out == {"garden1", "garden2"}
    train, validation = split_validation(folders, validation_scenes=held_out)
    assert len(train["fox"]) == 8 == len(validation["garden1"])
    assert train["garden2"] == validation["fox"] == []
    with pytest.raises(NifiError, match="no scene matches 'gardn', expected some of fox, garden1, garden2"):
        matching_scenes(folders, ["fox", "gardn"])
    with pytest.raises(NifiError, match="no training pairs are left"):
        PairCrops(
            folders, size=8, seed=0, length=1, names=split_validation(folders, validation_scenes={"fox", *held_out})[0]
        )


def test_views_are_drawn_evenly_whatever_the_weights(tmp_path):
    folders = [write(tmp_path, scene=str(i), train=i + 1, rate="10KB" if i else "25KB") for i in range(4)]
    crops = PairCrops(folders, size=8, seed=0, length=1, rate_weights={"10KB": 1e-3, "25KB": 7.0})
    total = 7 + 9e-3
    for number, folder in enumerate(folders):
        for view in range(len(folder.splits["train"])):
            before = sum(len(f.splits["train"]) * (7 if f.rate == "25KB" else 1e-3) for f in folders[:number])
            weight = 7 if folder.rate == "25KB" else 1e-3
            assert crops._draw((before + (view + 0.01) * weight) / total) == (number, view)
            assert crops._draw((before + (view + 0.99) * weight) / total) == (number, view)
    assert crops._draw(np.nextafter(1.0, 0)) == (3, 3) and crops._draw(0.0) == (0, 0)
