import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nifi_ns import results
from nifi_ns.commands.compress import CommandCodec
from nifi_ns.compress.external import CommandSettings
from nifi_ns.compress.external._command import count_bytes
from nifi_ns.errors import NifiError
from nifi_ns.pairs import find_pair_folders

_CODEC = """
import sys
from pathlib import Path
from PIL import Image
data, output = map(Path, sys.argv[1:])
for split, count in (("train", 3), ("test", 2)):
    for kind in ("out", "photo"):
        (output / kind / split).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (24, 20), (80 * i + 10 * (kind == "out"),) * 3).save(output / kind / split / f"{i}.png")
(output / "scene.bin").write_bytes(data.read_bytes() * 10)
(output / "tables").mkdir()
(output / "tables" / "a.bin").write_bytes(bytes(7))
"""


@pytest.fixture
def settings(tmp_path: Path) -> CommandSettings:
    """Return a codec that writes ten times its input and 7 bytes of tables."""
    (tmp_path / "my codec.py").write_text(_CODEC)
    (tmp_path / "scene").write_bytes(bytes(11))
    return CommandSettings(
        command=f"{sys.executable} '{tmp_path}/my codec.py' {{data}} {{output}}",
        renders="out/{split}",
        photos="photo/{split}",
        bytes_of=("scene.bin", "**/*.bin"),
        rate="tiny",
    )


def test_any_program_that_writes_renders_and_bytes_is_a_codec(settings: CommandSettings, tmp_path: Path):
    CommandCodec(codec=settings, data=tmp_path / "scene", output=tmp_path / "out").main()
    (folder,) = find_pair_folders([tmp_path / "out" / "pairs"])
    assert folder.label == "scene/tiny" and folder.bytes == 117
    assert {split: len(names) for split, names in folder.splits.items()} == {"train": 3, "test": 2}
    assert [r.bytes for r in results.load(tmp_path / "out" / "results.json")] == [117] * 3


def test_every_pattern_of_bytes_must_match_a_file(tmp_path: Path):
    (tmp_path / "a.bin").write_bytes(bytes(3))
    with pytest.raises(NifiError, match=r"--bytes-of \*\.mlp matches no file"):
        count_bytes(tmp_path, ("*.bin", "*.mlp"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"command": ""}, "give --command"),
        ({"bytes_of": ()}, "give --command (what to run) and --bytes-of"),
        ({"command": "a 'b"}, "cannot be read"),
        ({"command": "no-such-codec {data}"}, "the program 'no-such-codec' is not on PATH"),
        ({"renders": "out"}, "must contain {split}"),
        ({"bytes_of": ("/etc/hosts",)}, "give paths relative to {output}"),
        ({"rate": "a/b"}, "expected a plain name"),
    ],
)
def test_invalid_settings_are_refused_before_any_work(
    settings: CommandSettings, tmp_path: Path, change: dict, message: str
):
    changed = replace(settings, **change)
    with pytest.raises(NifiError, match=re.escape(message)):
        CommandCodec(codec=changed, data=tmp_path / "scene", output=tmp_path / "out").main()
    assert not (tmp_path / "out").exists()
