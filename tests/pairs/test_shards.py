"""Pairs in WebDataset shards: the same crops as from folders, low memory, and one-line errors."""

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from pair_folders import write_scene
from PIL import Image

from nifi_ns.commands.train import preset
from nifi_ns.diffusion import Backbone
from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.pairs import PairCrops, PairFolder, find_pair_folders, split_validation, write_shards
from nifi_ns.pairs._shards import open_shards
from nifi_ns.restore import Trainer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[PairFolder]:
    root = tmp_path_factory.mktemp("pairs")
    return [write_scene(root, scene, rate) for scene in ("a", "b") for rate in ("10KB", "25KB")]


@pytest.fixture(scope="module")
def shards(folders: list[PairFolder], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Shards of a few samples each, so that scenes span shards and shards hold several scenes."""
    return list(write_shards(folders, tmp_path_factory.mktemp("shards"), 60_000))


def png(image: np.ndarray, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_shards_hold_the_same_as_the_folders(folders: list[PairFolder], shards: list[Path]) -> None:
    assert len(shards) >= 4
    found = find_pair_folders([shards[0].parent], "referenced")
    assert [(f.label, f.splits, f.bytes, f.gaussians) for f in found] == [
        (f.label, f.splits, f.bytes, f.gaussians) for f in folders
    ]
    for ours, theirs in zip(found, folders, strict=True):
        for split, names in theirs.splits.items():
            for name in names:
                for inputs in ("degraded", "referenced"):
                    pairs = zip(ours.load(split, name, inputs), theirs.load(split, name, inputs), strict=True)
                    assert all(np.array_equal(a, b) for a, b in pairs)


def test_crops_from_shards_equal_crops_from_folders(folders: list[PairFolder], shards: list[Path]) -> None:
    streams = [PairCrops(f, size=16, seed=3, length=40, cache_bytes=1) for f in (folders, open_shards(shards))]
    for i in range(40):
        assert all(torch.equal(streams[0][i][key], streams[1][i][key]) for key in ("clean", "degraded"))


def test_a_restorer_can_be_trained_on_shards(shards: list[Path], sd3: Backbone, tmp_path: Path) -> None:
    found = find_pair_folders(shards)
    config = preset("nifi-tiny").training.with_options(
        steps=2, batch_size=2, crop=16, rank=2, eval_views=2, validation_scenes=("b",)
    )
    trained = Trainer(sd3, found, tmp_path, config).train()
    assert {row.scene: row.more.get("held_out") for row in trained.rows} == {"a": None, "b": "scene"}
    with pytest.raises(NifiError, match="with its pairs"):
        Trainer(sd3, found[:3], tmp_path, config, resume=True)


def test_foreign_shards_need_only_the_required_fields(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    members = {"x/1.json": b'{"scene": "s", "rate": "r"}', "x/1.clean.jpg": png(image, "jpeg")}
    members |= {"x/1.degraded.JPG": png(image, "jpeg"), "x/readme": b"", "x/1.txt": b"a caption"}
    (folder,) = find_pair_folders([write_tar(tmp_path / "one.tar", members)])
    assert (folder.label, folder.splits) == ("s/r", {"train": ("x/1",), "test": ()})
    assert folder.bytes is folder.gaussians is None
    assert folder.load("train", "x/1")[0].shape == (24, 32, 3)


def test_invalid_shards_are_refused_in_one_line(shards: list[Path], tmp_path: Path) -> None:
    image = png(np.zeros((24, 32, 3), np.uint8))
    good = {"1.json": b'{"scene": "s", "rate": "r"}', "1.clean.png": image, "1.degraded.png": image}

    def message(members: dict[str, bytes], error: type[NifiError] = NifiError) -> str:
        with pytest.raises(error) as caught:
            find_pair_folders([write_tar(tmp_path / "x.tar", members)])
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
        return str(caught.value)

    assert find_pair_folders([write_tar(tmp_path / "x.tar", good)])
    assert "sample 1 needs 1.json" in message({k: v for k, v in good.items() if "json" not in k})
    assert "sample 1 needs 1.json and 1.clean.png" in message({k: v for k, v in good.items() if "clean" not in k})
    assert "r/train/1.degraded is missing" in message({k: v for k, v in good.items() if "degraded" not in k})
    assert "needs scene and rate" in message({**good, "1.json": b'{"scene": "s"}'})
    assert "split may be train or test" in message({**good, "1.json": b'{"scene": "s", "rate": "r", "split": "val"}'})
    other = b'{"scene": "s", "rate": "r", "attended_photos": "1"}'
    assert "has attended_photos '1': expected a list" in message({**good, "1.json": other})
    assert "has bytes 'x'" in message({**good, "1.json": b'{"scene": "s", "rate": "r", "bytes": "x"}'})
    assert "not a readable shard" in message({**good, "1.json": b"{"}, CorruptFileError)
    assert "cannot be read" in message({**good, "1.clean.png": b"no image"}, CorruptFileError)
    twice = {"2" + k[1:]: v for k, v in good.items()} | {"2.json": b'{"scene": "s", "rate": "r", "name": "1"}'}
    assert "s/r has two train views called 1" in message({**good, **twice})
    (tmp_path / "cut.tar").write_bytes(shards[0].read_bytes()[:40_000])
    with pytest.raises(NifiError):
        find_pair_folders([tmp_path / "cut.tar"])
    (tmp_path / "no.tar").write_bytes(b"no tar file at all")
    with pytest.raises(CorruptFileError, match=r"no\.tar is not a readable shard"):
        find_pair_folders([tmp_path / "no.tar"])
    with pytest.raises(NifiError, match="is already in shards"):
        list(write_shards(open_shards(shards), tmp_path, 1))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("claimed", [10**6, 2**42, 2**63])
def test_a_header_with_wrong_sizes_is_refused_in_one_line(tmp_path: Path, kind: bytes, claimed: int) -> None:
    header = tarfile.TarInfo("1.json")
    header.size, header.type = claimed, kind
    (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"{}".ljust(512, b"\0"))
    with pytest.raises(CorruptFileError, match=r"x\.tar is not a readable shard of pairs: .") as caught:
        open_shards([tmp_path / "x.tar"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["folders", "shards"])
def test_thousands_of_scenes_are_not_held_in_memory(kind: str, tmp_path: Path) -> None:
    """2,000 scenes of three views of 200 KB each, decoded: 1.2 GB for each of two images."""
    rng = np.random.default_rng(0)
    pictures = [png(np.kron(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((32, 32, 1), np.uint8)))] * 2
    members = {}
    for scene in range(2000):
        about = {"scene": f"scene{scene:04d}", "rate": "25KB"}
        root = tmp_path / about["scene"] / "rate_25KB"
        names = {"train": ["0", "1"], "test": ["2"]}
        if kind == "folders":
            for split, views in names.items():
                for part in ("clean", "degraded"):
                    (root / split / part).mkdir(parents=True)
                    for view in views:
                        link_or_write(root / split / part / f"{view}.png", tmp_path / "picture", pictures[0])
            about |= {"version": 1, "bytes": None, "gaussians": None, "fingerprint": "f", "splits": names}
            (root / "pairs.json").write_text(json.dumps(about))
            continue
        for split, views in names.items():
            for view in views:
                about_json = json.dumps({**about, "split": split, "name": view}).encode()
                parts = (about_json, *pictures)
                for part, data in zip(("json", "clean.png", "degraded.png"), parts, strict=True):
                    members[f"{scene:06d}{view}.{part}"] = data
    if kind == "shards":
        write_tar(tmp_path / "all.tar", members)
    del members
    tracemalloc.start()
    try:
        folders = find_pair_folders([tmp_path])
        train, validation = split_validation(folders, validation_scenes={f"scene{i:04d}" for i in range(50)})
        crops = PairCrops(folders, size=16, seed=0, length=300, names=train, cache_bytes=4 * 10**6)
        for i in range(300):
            crops[i]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(folders) == 2000 and len(validation["scene0000"]) == 2 and not train["scene0000"]
    assert peak < 25 * 10**6  # the cache, and about 10 KB per scene


def link_or_write(path: Path, original: Path, data: bytes) -> None:
    if not original.exists():
        original.write_bytes(data)
    path.hardlink_to(original)
