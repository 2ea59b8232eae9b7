import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nifi_ns import formats
from nifi_ns.commands.compress import Compress
from nifi_ns.compress import CompressionSettings, decode, encode, info
from nifi_ns.compress.codec import PRESETS
from nifi_ns.errors import NifiError
from nifi_ns.formats import _ply
from nifi_ns.splats import Splats


@pytest.fixture
def ply(tmp_path: Path) -> Path:
    """A `.ply` of 300 gaussians in a cloud."""
    quats = torch.randn(300, 4)
    splats = Splats(torch.randn(300, 3), torch.randn(300, 3) - 2, quats, torch.randn(300), torch.randn(300, 1, 3))
    formats.save(tmp_path / "cloud.ply", splats)
    return tmp_path / "cloud.ply"


@pytest.fixture
def scene(ply: Path) -> Path:
    """The same as a scene file."""
    path = ply.with_name("scene.nifi")
    path.write_bytes(encode(formats.load(ply), PRESETS["mid"]))
    return path


def test_compresses_a_ply_and_says_what_became_of_it(ply: Path, capsys: pytest.CaptureFixture[str]):
    settings = CompressionSettings(target_size="1KB", steps=2, importance_views=4)
    Compress(ply=ply, compression=settings).main()
    scene = info(ply.with_suffix(".nifi").read_bytes())
    assert 980 <= scene.size <= 1000
    printed = capsys.readouterr().out
    assert f"{scene.count} of 300 gaussians kept" in printed
    assert re.search(r"1[67]x smaller than the plain .ply", printed)
    assert all(
        word in printed for word in ("means", "bits a gaussian", "encoding", "decoding", "before", "after", "psnr")
    )


def test_decodes_to_a_ply(scene: Path, tmp_path: Path):
    Compress(decode=scene, output=tmp_path / "back" / "again.ply").main()
    back, decoded = formats.load(tmp_path / "back" / "again.ply"), decode(scene.read_bytes())
    assert torch.equal(back.means, decoded.means)
    assert torch.equal(back.sh, decoded.sh)
    Compress(decode=scene).main()
    assert scene.with_suffix(".ply").is_file()


@pytest.mark.parametrize("suffix", [".spz", ".splat", ".compressed.ply", ".sog"])
def test_decodes_to_and_compresses_from_other_formats(scene: Path, tmp_path: Path, suffix: str):
    Compress(decode=scene, output=tmp_path / f"back{suffix}").main()
    settings = CompressionSettings(target_size="1KB", steps=0, importance_views=2)
    Compress(ply=tmp_path / f"back{suffix}", output=tmp_path / "again.nifi", compression=settings).main()
    assert info((tmp_path / "again.nifi").read_bytes()).count > 30


def test_tells_what_is_inside(scene: Path, capsys: pytest.CaptureFixture[str]):
    Compress(info=scene).main()
    printed = capsys.readouterr().out
    assert "300 gaussians, SH degree 0, version 1" in printed
    assert all(stream in printed for stream in info(scene.read_bytes()).sizes)


def test_tells_which_levels_are_inside(ply: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = encode(formats.load(ply), PRESETS["coarse"], counts=[70, 230])
    (tmp_path / "cut.nifi").write_bytes(data[: info(data).levels[0].size])
    Compress(info=tmp_path / "cut.nifi").main()
    assert re.search(r"gaussians by level: 70 in \S+, 1 cut off", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give exactly one of --load-config, --ply, --decode, --info; got none"),
        ({"ply": Path("a.ply"), "info": Path("b.nifi")}, "got --ply and --info"),
        ({"ply": Path("missing.ply")}, "no such file: missing.ply"),
        ({"decode": Path("missing.nifi")}, "no such file: missing.nifi"),
        ({"info": Path("missing.nifi")}, "no such file: missing.nifi"),
        ({"ply": Path("a.ply"), "output": Path("b.zip")}, "--output b.zip must end in .nifi"),
        ({"decode": Path("a.nifi"), "output": Path("b.zip")}, "b.zip must end in one of .ply, "),
        ({"info": Path("a.nifi"), "output": Path("b.ply")}, "--output does not go with --info"),
        ({"ply": Path("a.ply"), "sizes": ("1KB", "2KB")}, "go with --load-config, not with --ply"),
        ({"load_config": Path("c.yml"), "sizes": ("1KB",), "target_psnr_drop": 0.1}, "not both"),
        ({"load_config": Path("c.yml"), "sizes": ("1KB", "some")}, "cannot read the size 'some'"),
    ],
)
def test_says_what_is_wrong_before_any_work(arguments: dict, message: str):
    with pytest.raises(NifiError, match=re.escape(message)):
        Compress(**arguments).main()


def test_antialiasing_goes_from_format_to_format(ply: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = CompressionSettings(target_size="3KB", steps=0, importance_views=1)
    formats.save(tmp_path / "smooth.ply", formats.load(ply), antialiased=True)
    for source, smooth in ((ply, False), (tmp_path / "smooth.ply", True)):
        scene = source.with_suffix(".nifi")
        Compress(ply=source, compression=settings).main()
        assert info(scene.read_bytes()).antialiased == smooth
        capsys.readouterr()
        Compress(info=scene).main()
        assert ("drawn antialiased" in capsys.readouterr().out) == smooth
        for suffix in (".spz", ".sog"):
            Compress(decode=scene, output=tmp_path / f"{source.stem}{suffix}").main()
            assert formats.is_antialiased(tmp_path / f"{source.stem}{suffix}") == smooth


def test_what_cannot_be_compressed_leaves_no_file(ply: Path, tmp_path: Path):
    with pytest.raises(NifiError, match="not a single gaussian fits into 60"):
        Compress(ply=ply, compression=CompressionSettings(target_size="60", steps=0, importance_views=1)).main()
    _ply.save(tmp_path / "empty.ply", formats.load(ply)[torch.zeros(300, dtype=torch.bool)])
    with pytest.raises(NifiError, match="no gaussians"):
        Compress(ply=tmp_path / "empty.ply").main()
    assert not list(tmp_path.glob("*.nifi"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ply", "x.ply", "--target-size", "tiny"], "error: cannot read the size 'tiny'"),
        (["--info", __file__], "error: not a scene file"),
    ],
)
def test_errors_are_one_line_and_status_one(arguments: list[str], message: str):
    code = "from nifi_ns.commands.compress import entrypoint; entrypoint()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
