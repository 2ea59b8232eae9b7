"""Every command in README.md and docs/ is parsed by the program's own parser, so documented options stay valid.

Commands are not run: they are patched to stop after parsing.
"""

import dataclasses
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from random_splats import random_splats
from test_architecture import ALLOWED, BASICS, SCENE

import nifi_ns
import nifi_ns.commands as commands_package
from nifi_ns.commands import _cli
from nifi_ns.diffusion import Backbone

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STOCK = {
    "ns-train": "train",
    "ns-viewer": "viewer.run_viewer",
    "ns-render": "render",
    "ns-eval": "eval",
    "ns-nifi-export": "exporter",
    "ns-nifi-process-data": "process_data",
}
"""Nerfstudio's scripts, by the commands in the docs."""
FOREIGN = {"pip", "python3", "source", "apt-get", "ssh", "huggingface-cli"}
"""Programs whose options are not checked."""


class Parsed(Exception):
    """Raised when a command line was parsed."""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command in a page's bash blocks: variables replaced, no comments and no `export`."""
    variables: dict[str, str] = {}
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            text = re.sub(r"\$(\w+)", lambda match: variables[match[1]], line)
            words = shlex.split(text, comments=True)
            assert not {"|", "<", ">", "&&", ";"} & set(words), f"{name(page)}: this test cannot parse {line!r}"
            exported = words[:1] == ["export"]
            while words[exported:] and re.match(r"\w+=", words[exported]):
                variable, _, value = words.pop(exported).partition("=")
                variables[variable] = value
            if words and not exported:
                yield words


ALL = [pytest.param(words, id=f"{name(page)}: {shlex.join(words)[:90]}") for page in PAGES for words in commands(page)]


def test_commands_are_found_in_the_pages() -> None:
    count = {name(page): len(list(commands(page))) for page in PAGES}
    assert count["README.md"] > 8 and count["docs/tutorial.md"] > 15 and count["docs/troubleshooting.md"] > 15


@pytest.mark.parametrize("words", ALL)
def test_the_command_is_valid(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Parsed):
        parse(words, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "ns-nifi-train --pairs pairs --stesp 3",
        "ns-nifi-train --pairs pairs --preset absent",
        "ns-nifi-compress info a.nifi --output b.ply",
        "ns-nifi-compress run a.yml --sizes 1KB --target-psnr-drop 1",
        "ns-nifi-pairs pack a --part 1/2",
        "ns-train nifi-splat --data x --pipeline.model.max-gausians 3",
        "ns-train nifi-splatt --data x",
        "ns-render interpolate --load-config x --rendered-output rgb",
        "ns-viewer --load-confg x",
        "ns-nifi-process-data images --data x --output y",
        "python scripts/download_data.py --scene garden",
        "python scripts/absent.py",
        "scripts/demo --dta x",
        "accelerate launch --num_procs 4 -m nifi_ns.commands.train --pairs x",
        "accelerate launch --num_processes 4 -m nifi_ns.commands.train --pears x",
        "nifi --help",
    ],
)
def test_an_invalid_command_is_refused(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((SystemExit, AssertionError, FileNotFoundError)):
        parse(shlex.split(line), monkeypatch)


# -- the pages as a whole --------------------------------------------------------------------------------------------


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of this repository that a page links to, each with its anchor or an empty string."""
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", page.read_text()):
        yield (page.parent / target).resolve() if target else page, anchor


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub creates for a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_are_valid() -> None:
    for page in PAGES:
        for target, anchor in links(page):
            assert target.exists(), f"{name(page)} links to {target}"
            assert not anchor or anchor in anchors(target), f"{name(page)} links to {target.name}#{anchor}"


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    assert {target for target, _ in links(index)} >= set((ROOT / "docs").glob("*.md")) - {index}
    assert index in {target for target, _ in links(ROOT / "README.md")}


def test_the_readme_can_be_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1200


def test_the_python_example_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (folder,) = re.findall(r'from_pretrained\("(.+?)"\)', source[0])
    backbone = Backbone.from_pretrained("nifi-tiny", device="cpu")
    backbone.add_adapters(rank=2, alpha=2)
    nifi_ns.Restorer(backbone).save_pretrained(folder)
    Image.new("RGB", (40, 24), "gray").save("render.png")
    nifi_ns.save_splats("garden.ply", random_splats(20))

    Path("example.py").write_text(source[0])

    runpy.run_path("example.py")

    assert Image.open("restored.png").size == (40, 24)
    assert len(nifi_ns.load_splats("decoded.ply")) == 20


def test_the_table_in_the_layout_page_matches_the_allowed_imports() -> None:
    groups = {"basics": BASICS, "scene": SCENE}
    page = (ROOT / "docs" / "layout.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| [^|]+ \| ([^|]*)\|$", page, re.MULTILINE)
    table = {}
    for package, cell in rows:
        words = [word.strip(" `") for word in cell.split(",") if word.strip()]
        table[package] = set[str]().union(*(groups.get(word, {word}) for word in words))
    assert table == ALLOWED


# -- parsing ---------------------------------------------------------------------------------------------------------


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise `Parsed` if the program accepts the words, else the program's error."""
    from nerfstudio.utils import install_checks

    from nifi_ns import errors

    monkeypatch.chdir(ROOT)  # paths of scripts are relative to it
    # some options check for programs and packages while they are parsed
    for check in ("check_colmap_installed", "check_ffmpeg_installed"):
        monkeypatch.setattr(install_checks, check, lambda *_: None)
    monkeypatch.setattr(errors, "find_spec", lambda name: name)
    program, *arguments = words
    if program in FOREIGN:
        raise Parsed
    if program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert arguments.pop(0) == "launch"
        split = arguments.index("-m")
        launch_command_parser().parse_args([*arguments[:split], "-m", arguments[split + 1]])
        return _parse_own(arguments[split + 1], arguments[split + 2 :], monkeypatch)
    if program in STOCK:
        return _parse_stock(f"nerfstudio.scripts.{STOCK[program]}", [program, *arguments], monkeypatch)
    if program.startswith("ns-nifi-"):
        return _parse_own(f"nifi_ns.commands.{program.removeprefix('ns-nifi-')}", arguments, monkeypatch)
    if program == "python":
        return _parse_script(ROOT / arguments[0], arguments[1:], monkeypatch)
    if program == "scripts/demo":
        return _parse_script(ROOT / "scripts" / "_demo.py", arguments, monkeypatch)
    assert program == "scripts/test", f"unknown program {program}"
    raise Parsed  # pytest parses its arguments


def _parse_own(module_name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module(module_name)
    monkeypatch.setattr(module, "run", _only_parse)
    monkeypatch.setattr(sys, "argv", [module_name, *arguments])
    module.entrypoint()


def _parse_script(script: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands_package, "run", _only_parse)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")


def _only_parse(command: object, default: Callable[[], _cli.Command] | None = None, **_: object) -> None:
    from nifi_ns.errors import NifiError

    try:
        _cli.parse(command, default)
    except NifiError as error:
        sys.exit(str(error))
    raise Parsed


def _parse_stock(module_name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse one of nerfstudio's commands, which calls `main` of the parsed object or of its module afterwards."""
    monkeypatch.setitem(sys.modules, "open3d", ModuleType("open3d"))  # parsing does not need it
    module = import_module(module_name)

    def stop(*_: object, **__: object) -> None:
        raise Parsed

    if hasattr(module, "main"):
        monkeypatch.setattr(module, "main", stop)
    for value in list(vars(module).values()):
        if dataclasses.is_dataclass(value) and isinstance(value, type) and hasattr(value, "main"):
            monkeypatch.setattr(value, "main", stop)
    monkeypatch.setattr(sys, "argv", words)
    module.entrypoint()
