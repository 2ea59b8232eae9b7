import ast
from pathlib import Path

import pytest
from measure_house import BLOCK, MeasureHouse, circles, duplicated_lines, public_names

from nifi_ns.errors import NifiError


def parsed(**sources: str) -> dict[str, ast.Module]:
    return {name.replace("__", "."): ast.parse(source) for name, source in sources.items()}


def test_circles_are_found_wherever_an_import_stands():
    trees = parsed(
        p__a="from p import b",
        p__b="def f():\n    from p.c import x",
        p__c="if TYPE_CHECKING:\n    import p.a",
        p__d="import p.a",
        p="",
    )
    assert circles(trees) == [["p.a", "p.b", "p.c"]]
    assert circles(parsed(p__a="from p.b import x", p__b="import os")) == []


def test_public_names_are_those_that_need_no_underscore():
    trees = parsed(p="__all__ = ['a', 'b']\ndef c(): ...", p__q="def d(): ...\nX = 1\n_y = 2", p___r="def e(): ...")
    assert public_names(trees) == 2 + 2


def test_equal_lines_in_a_row_are_counted_on_both_sides(tmp_path: Path):
    block = [f"x = {i}" for i in range(BLOCK + 2)]
    (tmp_path / "a.py").write_text("\n".join(["import a", *block, "y = 1"]))
    (tmp_path / "b.py").write_text("\n\n".join(["z = 1", *block]))
    (tmp_path / "c.py").write_text("\n".join(block[: BLOCK - 1]))
    assert duplicated_lines(sorted(tmp_path.iterdir())) == 2 * (BLOCK + 2)


def test_a_checkout_becomes_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    room = tmp_path / "nifi_ns" / "room"
    room.mkdir(parents=True)
    (room.parent / "__init__.py").write_text("from nifi_ns.room import f\n")
    (room / "__init__.py").write_text("import nifi_ns\ndef f(): ...\n")
    (tmp_path / "README.md").write_text("three short words")
    MeasureHouse(tmp_path, runs=0).main()
    printed = capsys.readouterr().out
    assert "| nifi_ns/room/ | 1 | 2 |" in printed and "| circles of imports | 1; nifi_ns, nifi_ns.room |" in printed
    assert "| words of README.md | 3 |" in printed
    with pytest.raises(NifiError, match="no nifi_ns/"):
        MeasureHouse(tmp_path / "absent").main()
