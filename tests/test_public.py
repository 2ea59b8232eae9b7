"""The public names of `nifi_ns`, and their import on first use."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nifi_ns

NAMES = {
    "BITS",
    "NifiError",
    "Restorer",
    "RestorerSettings",
    "SceneInfo",
    "Splats",
    "__version__",
    "decode",
    "encode",
    "info",
    "load_splats",
    "save_splats",
}


def test_the_public_names_are_these_and_no_others():
    assert set(nifi_ns.__all__) == NAMES
    assert set(nifi_ns.__dir__()) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES - {"__version__", "BITS"}))
def test_public_names_have_docstrings(name):
    assert inspect.getdoc(getattr(nifi_ns, name))


def test_type_checkers_see_the_same_names_as_callers():
    tree = ast.parse(Path(nifi_ns.__file__).read_text())
    seen = {alias.asname or alias.name for node in tree.body if isinstance(node, ast.If) for alias in _imported(node)}
    assert seen == NAMES - {"__version__"}


def _imported(block: ast.If) -> list[ast.alias]:
    return [alias for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'compres'"):
        _ = nifi_ns.compres  # type: ignore[attr-defined]


def test_importing_the_package_imports_no_dependency():
    code = "import sys; before = set(sys.modules); import nifi_ns; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names == {"nifi_ns"}


def test_the_public_names_write_and_read_splats(tmp_path):
    count = 50
    quats = torch.randn(count, 4)
    splats = nifi_ns.Splats(
        torch.randn(count, 3), torch.full((count, 3), -3.0), quats, torch.zeros(count), quats[:, None, :3]
    )
    nifi_ns.save_splats(tmp_path / "a.ply", splats)
    data = nifi_ns.encode(nifi_ns.load_splats(tmp_path / "a.ply"), nifi_ns.BITS["mid"])
    assert nifi_ns.info(data).count == len(nifi_ns.decode(data)) == count
    with pytest.raises(nifi_ns.NifiError):
        nifi_ns.decode(data[:20])
