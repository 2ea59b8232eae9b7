"""Every scene that one format can write, all formats can read and write; others are refused in one line."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_splats import random_splats

from nifi_ns import formats
from nifi_ns.compress.codec import BITS, decode, encode
from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.splats import Splats

INF, NAN = float("inf"), float("nan")
SPLATS_FILES = [*formats.SUFFIXES, ".nifi"]


def there_and_back(folder: Path, suffix: str, splats: Splats) -> Splats:
    if suffix == ".nifi":
        return decode(encode(splats, BITS["mid"]))
    path = folder / (suffix if suffix == "meta.json" else f"scene{suffix}")
    formats.save(path, splats)
    return formats.load(path)


def changed(name: str, value: float | torch.Tensor, sh_degree: int = 1) -> Splats:
    """Return forty gaussians, the first three with `name` set to `value`."""
    splats = random_splats(40, sh_degree)
    getattr(splats, name)[:3] = value
    return splats


AWKWARD = {
    "one gaussian": random_splats(1, 0),
    "equal gaussians": random_splats(1, 1)[torch.zeros(500, dtype=torch.long)],
    **{f"SH of degree {degree}": random_splats(30, degree) for degree in range(4)},
    "tiny quaternions": changed("quats", torch.tensor([1e-30, -2e-30, 3e-30, 0])),
    "huge quaternions": changed("quats", torch.tensor([1e30, -2e30, 3e30, 0])),
    "huge scales": changed("scales", 80.0),
    "tiny scales": changed("scales", -87.0),
    "needles": changed("scales", torch.tensor([3.0, -40, -87])),
    "opaque and invisible": changed("opacities", torch.tensor([300.0, -300, 0])),
    "glaring colours": changed("sh", 1e4),
    "at a thousand": replace(random_splats(40, 1), means=random_splats(40).means + 1000),
    "a flat scene": replace(random_splats(40, 1), means=random_splats(40).means * torch.tensor([1.0, 1, 0])),
}


@pytest.mark.parametrize("suffix", SPLATS_FILES)
@pytest.mark.parametrize("scene", AWKWARD)
def test_awkward_gaussians_survive_all_formats(tmp_path: Path, suffix: str, scene: str) -> None:
    source = AWKWARD[scene]
    loaded = there_and_back(tmp_path, suffix, source)
    assert len(loaded) == len(source) and loaded.problem() is None
    assert loaded.sh_degree == (0 if suffix == ".splat" else source.sh_degree)
    # and again, in every other format
    for other in SPLATS_FILES:
        assert len(there_and_back(tmp_path / "other", other, loaded)) == len(source)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 3), st.integers(0, 10**6), st.floats(-3, 3), st.floats(0, 6))
def test_any_scene_survives_every_format(
    tmp_path_factory: pytest.TempPathFactory, count: int, degree: int, seed: int, size: float, spread: float
) -> None:
    splats, folder = random_splats(count, degree, seed), tmp_path_factory.mktemp("any")
    splats = replace(splats, means=splats.means * 10**size, scales=splats.scales * spread, sh=splats.sh * spread)
    for suffix in SPLATS_FILES:
        assert len(there_and_back(folder, suffix, splats)) == count


BROKEN = {
    "means": (INF, NAN, -INF),
    "scales": (INF, NAN),
    "quats": (INF, NAN, 0.0),
    "opacities": (NAN,),
    "sh": (INF, NAN, -INF),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BROKEN.items() for value in values])
def test_gaussians_that_cannot_be_drawn_are_neither_written_nor_read(tmp_path: Path, name: str, value: float) -> None:
    splats = changed(name, value)
    what = "a rotation of length zero" if value == 0 else f"{name} that are not finite"
    for suffix in SPLATS_FILES:
        with pytest.raises(NifiError, match=f"3 of 40 gaussians have {what}"):
            there_and_back(tmp_path, suffix, splats)
    assert not any(tmp_path.iterdir())
    path = tmp_path / "a.ply"
    whole = random_splats(40, 1)
    formats.save(path, whole)
    patched = path.read_bytes()
    for row in range(3):  # patched, because other programs do write such files
        before = getattr(whole, name)[row].flatten().tolist()
        patched = _patched(patched, whole, row, name, [value] * len(before))
    path.write_bytes(patched)
    with pytest.raises(CorruptFileError, match=f"3 of 40 gaussians have {what}"):
        formats.load(path)


def _patched(data: bytes, splats: Splats, row: int, name: str, values: list[float]) -> bytes:
    head, _, body = data.partition(b"end_header\n")
    table = np.frombuffer(body, "<f4").reshape(len(splats), -1).copy()
    columns = {
        "means": slice(0, 3),
        "sh": slice(3, 15),
        "opacities": 15,
        "scales": slice(16, 19),
        "quats": slice(19, 23),
    }
    table[row, columns[name]] = values if len(values) > 1 else values[0]
    return head + b"end_header\n" + table.tobytes()


def test_opacities_of_one_and_scales_of_zero_are_read(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.ply", random_splats(40, 1)
    formats.save(path, whole)
    data = path.read_bytes()
    for row, (name, values) in enumerate({"opacities": [INF], "scales": [-2.0, -INF, -3.0]}.items()):
        data = _patched(data, whole, row, name, values)
    path.write_bytes(_patched(data, whole, 2, "opacities", [-INF]))
    loaded = formats.load(path)
    assert loaded.opacities.sigmoid()[0] == 1 and loaded.opacities.sigmoid()[2] < 1e-12
    assert loaded.scales.exp()[1, 1] < 1e-37
    for suffix in SPLATS_FILES:
        assert len(there_and_back(tmp_path / "other", suffix, loaded)) == 40


@pytest.mark.parametrize("suffix", SPLATS_FILES)
def test_a_distant_gaussian_does_not_make_the_others_coarser(tmp_path: Path, suffix: str) -> None:
    near = random_splats(2000, 1)
    near = replace(near, means=near.means * 0.1)
    far = Splats.cat([near, replace(random_splats(1, 1), means=torch.full((1, 3), 1e5))])
    errors = []
    for source in (near, far):
        loaded = there_and_back(tmp_path, suffix, source)
        apart = torch.cdist(near.means.double(), loaded.means.double()).amin(dim=1)
        errors.append(float(apart.median()))
    print(suffix, errors)
    assert errors[1] <= 5 * errors[0] + 1e-6


@pytest.mark.parametrize("suffix", [".spz", ".compressed.ply", ".sog"])
def test_a_distant_gaussian_moved_closer_looks_the_same_from_the_middle(tmp_path: Path, suffix: str) -> None:
    near = random_splats(2000, 0)
    middle = near.means.median(dim=0).values
    far = replace(random_splats(1, 0), means=middle + torch.tensor([[3e5, -4e5, 0.0]]), scales=torch.full((1, 3), 9.0))
    loaded = there_and_back(tmp_path, suffix, Splats.cat([near, far]))
    distances = (loaded.means - middle).norm(dim=1)
    found = int(distances.argmax())
    direction = (loaded.means[found] - middle) / distances[found]
    torch.testing.assert_close(direction, torch.tensor([0.6, -0.8, 0]), rtol=0, atol=0.01)
    sizes = loaded.scales[found].exp() / distances[found]
    torch.testing.assert_close(sizes, torch.full((3,), 9.0).exp() / 5e5, rtol=0.1, atol=0)


@pytest.mark.parametrize("suffix", formats.SUFFIXES)
@pytest.mark.parametrize("antialiased", [False, True])
def test_antialiasing_is_written_and_read_or_refused(tmp_path: Path, suffix: str, antialiased: bool) -> None:
    path = tmp_path / (suffix if suffix == "meta.json" else f"scene{suffix}")
    if suffix == ".splat" and antialiased:
        with pytest.raises(NifiError, match="cannot record antialiasing"):
            formats.save(path, random_splats(30), antialiased=True)
        return
    formats.save(path, random_splats(30), antialiased=antialiased)
    assert formats.is_antialiased(path) == antialiased
    assert len(formats.load(path)) == 30


@pytest.mark.parametrize(
    ("comments", "expected"),
    [
        (["SplatRenderMode: mip"], True),
        (["splatrendermode:  MIP", "Exported from Brush"], True),
        (["antialiased 1"], True),
        (["antialiased 1", "SplatRenderMode: default"], False),
        (["antialiased 0", "nothing about a SplatRenderMode: mip"], False),
    ],
)
def test_antialiasing_comments_of_other_programs_are_read(tmp_path: Path, comments: list[str], expected: bool) -> None:
    path = _commented(tmp_path / "a.ply", comments)
    assert formats.is_antialiased(path) == expected and len(formats.load(path)) == 5


def _commented(path: Path, comments: list[str]) -> Path:
    formats.save(path, random_splats(5))
    lines = "".join(f"comment {comment}\n" for comment in comments).encode()
    path.write_bytes(path.read_bytes().replace(b"element vertex", lines + b"element vertex", 1))
    return path


def _edit_json(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        change(meta)
        (folder / "meta.json").write_text(json.dumps(meta))

    return edit


def test_unsupported_kinds_of_gaussians_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NifiError, match="2DGS"):
        formats.load(_commented(tmp_path / "a.ply", ["SplatRenderMode: 2dgs"]))
    formats.save(tmp_path / "meta.json", random_splats(5))
    _edit_json(lambda meta: meta.update(model="2dgs"))(tmp_path)
    with pytest.raises(NifiError, match="model '2dgs'"):
        formats.load(tmp_path)
    formats.save(tmp_path / "a.spz", random_splats(5))
    data = bytearray(gzip.decompress((tmp_path / "a.spz").read_bytes()))
    data[14] = 0x81
    (tmp_path / "a.spz").write_bytes(gzip.compress(data))
    with pytest.raises(NifiError, match="flags 0x81"):
        formats.load(tmp_path / "a.spz")


def test_the_antialias_key_of_old_sogs_is_read(tmp_path: Path) -> None:
    formats.save(tmp_path / "meta.json", random_splats(5))
    _edit_json(lambda meta: meta.update(antialias=True))(tmp_path)
    assert formats.is_antialiased(tmp_path)


def test_equal_gaussians_are_written_in_files_that_readers_accept_or_refused(tmp_path: Path) -> None:
    source = random_splats(1, 0)[torch.zeros(400_000, dtype=torch.long)]
    for suffix in (".spz", ".nifi"):
        assert len(there_and_back(tmp_path, suffix, source)) == 400_000
    with pytest.raises(NifiError, match="have the same position"):
        there_and_back(tmp_path, ".sog", source)
    data = (tmp_path / "scene.spz").read_bytes()
    (tmp_path / "scene.spz").write_bytes(gzip.compress(gzip.decompress(data)))
    with pytest.raises(CorruptFileError, match="declares 400000 gaussians in"):
        formats.load(tmp_path / "scene.spz")
