"""Round trips within the quantisation of each format, and files written by reference implementations."""

import json
import struct
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from random_splats import random_splats

from nifi_ns import formats
from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.splats import SH_C0, Splats

GOLDEN = Path(__file__).parents[1] / "data" / "formats"

# maximum errors of positions, log-scales, unit quaternions, opacities, SH of degree 0, SH above
ERRORS = {
    ".ply": (0.0, 0.0, 1e-6, 0.0, 0.0, 0.0),
    ".spz": (1e-5, 0.032, 0.002, 0.0021, 0.0135, 0.067),
    ".splat": (0.0, 1e-5, 0.0079, 0.0021, 0.007, 0.0),
    ".compressed.ply": (0.01, 0.004, 0.0016, 0.0021, 0.006, 0.017),
    ".sog": (0.0005, 0.06, 0.0079, 0.0021, 0.02, 0.03),
    "meta.json": (0.0005, 0.06, 0.0079, 0.0021, 0.02, 0.03),
}


def errors(ours: Splats, source: Splats) -> list[float]:
    """Return errors in the order of ERRORS; each of `ours` is compared with the nearest of `source`."""
    source = source[torch.cdist(ours.means.double(), source.means.double()).argmin(dim=1)]
    quats, expected = (torch.nn.functional.normalize(s.quats, dim=1) for s in (ours, source))
    quats = quats * (quats * expected).sum(dim=1, keepdim=True).sign()
    pairs = [
        (ours.means, source.means),
        (ours.scales, source.scales),
        (quats, expected),
        (ours.opacities.sigmoid(), source.opacities.sigmoid()),
        (ours.sh[:, 0], source.sh[:, 0]),
        (ours.sh[:, 1:], source.sh[:, 1:]),
    ]
    assert all(a.shape == b.shape for a, b in pairs)
    return [float((a - b).abs().max()) if a.numel() else 0.0 for a, b in pairs]


def assert_close(ours: Splats, source: Splats, limits: tuple[float, ...]) -> None:
    assert len(ours) == len(source)
    for found, limit in zip(errors(ours, source), limits, strict=True):
        assert found <= limit, errors(ours, source)


def path_for(folder: Path, suffix: str) -> Path:
    return folder / (suffix if suffix == "meta.json" else f"scene{suffix}")


@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
@pytest.mark.parametrize("suffix", formats.SUFFIXES)
def test_round_trip_within_the_quantisation(tmp_path: Path, suffix: str, sh_degree: int) -> None:
    source = random_splats(300, sh_degree)
    path = path_for(tmp_path, suffix)
    formats.save(path, source)
    assert_close(formats.load(path), source.with_sh_degree(0) if suffix == ".splat" else source, ERRORS[suffix])
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", formats.SUFFIXES)
def test_extreme_values_survive(tmp_path: Path, suffix: str) -> None:
    source = random_splats(20, 3)
    source.opacities[:4] = torch.tensor([-60.0, 60.0, -8.0, 8.0])
    source.scales[:2] = torch.tensor([[-25.0], [5.0]])
    source.quats[:4] = torch.eye(4) * torch.tensor([[1.0], [-1.0], [1e-3], [1e3]])
    source.sh[:2] = torch.tensor([9.0, -9.0])[:, None, None]
    source.means[0] = torch.tensor([900.0, -900.0, 0.0])
    path = path_for(tmp_path, suffix)
    formats.save(path, source)
    loaded = formats.load(path)
    assert len(loaded) == 20
    nearest = torch.cdist(source.means.double(), loaded.means.double()).argmin(dim=1)
    assert (loaded.opacities.sigmoid()[nearest] - source.opacities.sigmoid()).abs().max() < 0.003


@pytest.mark.parametrize("suffix", formats.SUFFIXES)
def test_a_single_gaussian_is_a_scene(tmp_path: Path, suffix: str) -> None:
    path = path_for(tmp_path, suffix)
    formats.save(path, random_splats(1, 1))
    assert len(formats.load(path)) == 1


@pytest.mark.parametrize("suffix", formats.SUFFIXES)
def test_an_empty_scene_is_not_written(tmp_path: Path, suffix: str) -> None:
    path = path_for(tmp_path, suffix)
    with pytest.raises(NifiError, match="no gaussians"):
        formats.save(path, random_splats(1)[torch.zeros(1, dtype=torch.bool)])
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "limits"),
    [  # written by @playcanvas/splat-transform 2.7.1, .spz with Adobe's build of Niantic's library, from random.ply
        ("random.compressed.ply", (0.01, 0.004, 0.0016, 0.0021, 0.006, 0.017)),
        ("random.spz", (1.3e-4, 0.032, 0.002, 0.0021, 0.0135, 0.067)),
        ("random_v4.spz", (1.3e-4, 0.032, 0.002, 0.0021, 0.0135, 0.067)),
        ("random_v2.spz", (1.3e-4, 0.032, 0.09, 0.0021, 0.0135, 0.067)),
        ("random.sog", (0.0005, 0.06, 0.0079, 0.0042, 0.02, 0.75)),  # its palette of 24 entries is coarse
    ],
)
def test_files_of_reference_implementations_are_read(name: str, limits: tuple[float, ...]) -> None:
    assert_close(formats.load(GOLDEN / name), formats.load(GOLDEN / "random.ply"), limits)


def test_rotations_of_spz_version_2_are_read() -> None:
    two, three = formats.load(GOLDEN / "random_v2.spz"), formats.load(GOLDEN / "random.spz")
    for name in ("means", "scales", "opacities", "sh"):
        assert torch.equal(getattr(two, name), getattr(three, name))
    assert ((two.quats * three.quats).sum(dim=1).abs() > 0.995).all()


def test_spz_versions_3_and_4_hold_the_same_values() -> None:
    three, four = formats.load(GOLDEN / "random.spz"), formats.load(GOLDEN / "random_v4.spz")
    assert all(torch.equal(getattr(four, f.name), getattr(three, f.name)) for f in fields(Splats))


def test_a_splat_has_the_layout_of_convert_py(tmp_path: Path) -> None:
    source = random_splats(1, 0)
    quat = source.quats[0] / source.quats[0].norm()
    rgb = (0.5 + SH_C0 * source.sh[0, 0]).clamp(0, 1) * 255
    alpha = float(source.opacities.sigmoid()[0]) * 255
    data = struct.pack("<3f", *source.means[0].tolist()) + struct.pack("<3f", *source.scales[0].exp().tolist())
    data += bytes([*(round(c) for c in rgb.tolist()), round(alpha), *(round(q * 128 + 128) for q in quat.tolist())])
    formats.save(tmp_path / "a.splat", source)
    written = (tmp_path / "a.splat").read_bytes()
    assert written[:12] == data[:12] and written[24:] == data[24:]
    np.testing.assert_allclose(np.frombuffer(written[12:24], "<f4"), np.frombuffer(data[12:24], "<f4"), rtol=1e-6)


def test_sog_version_1_has_bounds_instead_of_codebooks(tmp_path: Path) -> None:
    source = random_splats(300, 2)
    formats.save(tmp_path / "meta.json", source)
    meta = json.loads((tmp_path / "meta.json").read_text())
    second = formats.load(tmp_path)
    ramp = np.linspace(-6, 3, 256)
    for part in ("scales", "sh0", "shN"):
        meta[part]["codebook"] = ramp.tolist()
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    second = formats.load(tmp_path)
    for part, bounds in {"scales": 3, "sh0": 4, "shN": 0}.items():
        low, high = ([value] * bounds if bounds else value for value in (-6.0, 3.0))
        meta[part] = {"mins": low, "maxs": high, "files": meta[part]["files"]}
    meta["means"]["shape"] = [meta.pop("count"), 3]
    del meta["version"]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    first = formats.load(tmp_path)
    for name in ("means", "quats", "scales", "sh"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=1e-6)
    assert first.opacities.min() >= -6 and first.opacities.max() <= 3  # logits here, not opacities


def test_values_that_fit_a_codebook_are_kept_exactly(tmp_path: Path) -> None:
    source = random_splats(500, 1)
    source.scales = (source.scales * 16).round() / 16
    formats.save(tmp_path / "a.sog", source)
    assert errors(formats.load(tmp_path / "a.sog"), source)[1] == 0


def test_equal_scenes_give_equal_files(tmp_path: Path) -> None:
    for suffix in formats.SUFFIXES[:-1]:
        for name in "ab":
            formats.save(tmp_path / f"{name}{suffix}", random_splats(50, 1))
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_a_compressed_ply_is_recognised_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes((GOLDEN / "random.compressed.ply").read_bytes())
    assert len(formats.load(tmp_path / "a.ply")) == 24


def test_missing_files_and_unknown_suffixes_are_refused(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "meta.json"),
        (tmp_path / "a.ksplat", "has an unknown suffix, expected one of"),
        (tmp_path / "a.spz", "no such file"),
        (tmp_path / "a.sog", "no such file"),
    ):
        with pytest.raises(NifiError, match=message):
            formats.load(path)
    with pytest.raises(NifiError, match="has an unknown suffix, expected one of"):
        formats.save(tmp_path / "meta.json.ksplat", random_splats(1))


def streamed(folder: Path, files: dict[str, int]) -> Path:
    """Write a streamed SOG of two levels, the finest in `files` (numbers of gaussians by folder name)."""
    leaves = []
    for i, (name, count) in enumerate(files.items()):
        (folder / name).mkdir(parents=True)
        formats.save(folder / name / "meta.json", random_splats(count, 1, seed=i))
        leaves += [{"lods": {"0": {"file": i}, "1": {"file": len(files)}}}] * 2
    filenames = [*(f"{name}/meta.json" for name in files), "not/there/meta.json"]
    tree = {"children": [{"children": leaves}, {"lods": {}}]}
    (folder / "lod-meta.json").write_text(json.dumps({"filenames": filenames, "tree": tree}))
    return folder


def test_the_finest_level_of_a_streamed_sog_is_read(tmp_path: Path) -> None:
    folder = streamed(tmp_path, {"0_0": 30, "0_1": 20})
    whole = Splats.cat([formats.load(folder / "0_0"), formats.load(folder / "0_1")])
    for path in (folder, folder / "lod-meta.json"):
        assert torch.equal(formats.load(path).means, whole.means)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "does not describe a streamed SOG"),
        ("[]", "does not describe a streamed SOG"),
        ('{"filenames": [], "tree": {"lods": {"0": {"file": 0}}}}', "does not describe a streamed SOG"),
        ('{"filenames": ["../a/meta.json"], "tree": {"lods": {"0": {"file": 0}}}}', "is not the name of a file"),
        ('{"filenames": ["/etc/meta.json"], "tree": {"lods": {"0": {"file": 0}}}}', "is not the name of a file"),
        ('{"filenames": [7], "tree": {"lods": {"0": {"file": 0}}}}', "'7' is not the name of a file"),
        ('{"filenames": [], "tree": {}}', "no gaussians in its finest level"),
        ('{"filenames": ["a/meta.json"], "tree": {"lods": {"0": {"file": 0}}}}', "no such file"),
    ],
)
def test_damaged_streamed_sogs_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "lod-meta.json").write_text(content)
    with pytest.raises(NifiError, match=message):
        formats.load(tmp_path)


def test_a_folder_zipped_by_hand_is_read(tmp_path: Path) -> None:
    formats.save(tmp_path / "meta.json", random_splats(30, 1))
    with zipfile.ZipFile(tmp_path / "a.sog", "w", zipfile.ZIP_DEFLATED) as bundle:
        for file in [*tmp_path.glob("*.webp"), tmp_path / "meta.json"]:
            bundle.write(file, file.name)
    assert torch.equal(formats.load(tmp_path / "a.sog").sh, formats.load(tmp_path).sh)


def test_a_later_version_of_spz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.spz").write_bytes(b"NGSP\x05\x00\x00\x00" + bytes(100))
    with pytest.raises(NifiError, match="version 5") as caught:
        formats.load(tmp_path / "a.spz")
    assert not isinstance(caught.value, CorruptFileError)
