import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nifi_ns import formats
from nifi_ns.commands._cli import Command
from nifi_ns.commands.compress import CompressRun, CompressSplats, Decode, Info
from nifi_ns.compress import CompressionSettings, decode, encode, info
from nifi_ns.compress.codec import BITS
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
    """A scene file of the same gaussians."""
    path = ply.with_name("scene.nifi")
    path.write_bytes(encode(formats.load(ply), BITS["mid"]))
    return path


def test_a_ply_is_compressed_and_the_result_reported(ply: Path, capsys: pytest.CaptureFixture[str]):
    settings = CompressionSettings(target_size="1KB", steps=2, importance_views=4)
    CompressSplats(file=ply, compression=settings).main()
    scene = info(ply.with_suffix(".nifi").read_bytes())
    assert 980 <= scene.size <= 1000
    printed = capsys.readouterr().out
    assert f"{scene.count} of 300 gaussians kept" in printed
    assert re.search(r"1[67]x smaller than the plain .ply", printed)
    assert all(
        word in printed for word in ("means", "bits per gaussian", "encoding", "decoding", "before", "after", "psnr")
    )


def test_a_scene_file_is_decoded_to_a_ply(scene: Path, tmp_path: Path):
    Decode(scene=scene, output=tmp_path / "back" / "again.ply").main()
    back, decoded = formats.load(tmp_path / "back" / "again.ply"), decode(scene.read_bytes())
    assert torch.equal(back.means, decoded.means)
    assert torch.equal(back.sh, decoded.sh)
    Decode(scene=scene).main()
    assert scene.with_suffix(".ply").is_file()


@pytest.mark.parametrize("suffix", [".spz", ".splat", ".compressed.ply", ".sog"])
def test_other_formats_are_written_and_compressed(scene: Path, tmp_path: Path, suffix: str):
    Decode(scene=scene, output=tmp_path / f"back{suffix}").main()
    settings = CompressionSettings(target_size="1KB", steps=0, importance_views=2)
    CompressSplats(file=tmp_path / f"back{suffix}", output=tmp_path / "again.nifi", compression=settings).main()
    assert info((tmp_path / "again.nifi").read_bytes()).count > 30


def test_info_describes_a_scene_file(scene: Path, capsys: pytest.CaptureFixture[str]):
    Info(scene=scene).main()
    printed = capsys.readouterr().out
    assert "300 gaussians, SH degree 0, version 1" in printed
    assert all(stream in printed for stream in info(scene.read_bytes()).sizes)


def test_info_lists_levels_of_detail(ply: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = encode(formats.load(ply), BITS["coarse"], counts=[70, 230])
    (tmp_path / "cut.nifi").write_bytes(data[: info(data).levels[0].size])
    Info(scene=tmp_path / "cut.nifi").main()
    assert re.search(r"gaussians by level of detail: 70 in \S+, 1 truncated", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (CompressSplats(file=Path("missing.ply")), "no such file: missing.ply"),
        (Decode(scene=Path("missing.nifi")), "no such file: missing.nifi"),
        (Info(scene=Path("missing.nifi")), "no such file: missing.nifi"),
        (CompressSplats(file=Path("a.ply"), output=Path("b.zip")), "--output b.zip must end in .nifi"),
        (Decode(scene=Path("a.nifi"), output=Path("b.zip")), "b.zip has an unknown suffix, expected one of .ply, "),
        (CompressRun(config=Path("c.yml"), sizes=("1KB", "some")), "cannot read the size 'some'"),
    ],
)
def test_invalid_options_are_refused_before_any_work(command: Command, message: str):
    with pytest.raises(NifiError, match=re.escape(message)):
        command.main()


def test_antialiasing_is_kept_across_formats(ply: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = CompressionSettings(target_size="3KB", steps=0, importance_views=1)
    formats.save(tmp_path / "smooth.ply", formats.load(ply), antialiased=True)
    for source, smooth in ((ply, False), (tmp_path / "smooth.ply", True)):
        scene = source.with_suffix(".nifi")
        CompressSplats(file=source, compression=settings).main()
        assert info(scene.read_bytes()).antialiased == smooth
        capsys.readouterr()
        Info(scene=scene).main()
        assert ("antialiased" in capsys.readouterr().out) == smooth
        for suffix in (".spz", ".sog"):
            Decode(scene=scene, output=tmp_path / f"{source.stem}{suffix}").main()
            assert formats.is_antialiased(tmp_path / f"{source.stem}{suffix}") == smooth


def test_a_failed_compression_leaves_no_file(ply: Path, tmp_path: Path):
    with pytest.raises(NifiError, match="not a single gaussian fits into 60"):
        CompressSplats(file=ply, compression=CompressionSettings(target_size="60", steps=0, importance_views=1)).main()
    _ply.save(tmp_path / "empty.ply", formats.load(ply)[torch.zeros(300, dtype=torch.bool)])
    with pytest.raises(NifiError, match="no gaussians"):
        CompressSplats(file=tmp_path / "empty.ply").main()
    assert not list(tmp_path.glob("*.nifi"))


def typed(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from nifi_ns.commands.compress import entrypoint; entrypoint()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["splats", "x.ply", "--target-size", "tiny"], "error: cannot read the size 'tiny'"),
        (["info", __file__], "error: not a scene file"),
    ],
)
def test_errors_are_one_line_and_status_one(arguments: list[str], message: str):
    done = typed(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected one of {run, splats, decode, info, hacpp, command}"),
        (["run", "c.yml", "--sizes", "1KB", "--target-psnr-drop", "1"], "not allowed together"),
        (["info", "a.nifi", "--output", "b.ply"], "--output"),
    ],
)
def test_conflicting_options_are_refused(arguments: list[str], message: str):
    done = typed(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
