"""The imports that are allowed between packages, including those for type checking and inside functions."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import nifi_ns

ROOT = Path(nifi_ns.__file__).parent

BASICS = {"errors", "files"}
SCENE = BASICS | {"splats", "views", "novel_views"}
ALLOWED: dict[str, set[str]] = {
    # the foundation
    "errors": set(),
    "files": {"errors"},
    "compiled": BASICS,
    "morton": set(),
    "subprocesses": set(),
    "views": set(),
    "novel_views": {"views"},
    "splats": set(),
    "media": BASICS,
    "distributions": set(),
    "metrics": {"errors", "distributions"},
    "results": BASICS | {"metrics"},
    # splats and cameras to images; captures; files of other programs
    "rasterize": SCENE | {"compiled"},
    "capture": BASICS | {"compiled"},
    "formats": BASICS | {"morton", "splats"},
    "presets": {"errors"},
    # Nix does not depend on diffusion
    "compress.codec": {"errors", "compiled", "morton", "splats"},
    "compress.external": BASICS | {"media", "views", "subprocesses"},
    "compress": SCENE | {"compress.codec", "metrics", "rasterize"},
    # photos and renders to residuals, without learning
    "references": {"errors", "media", "novel_views", "views"},
    "pairs": BASICS | {"media", "views"},
    "proxy": SCENE | {"rasterize"},
    # Fix does not depend on gaussians
    "diffusion": BASICS,
    "learning": BASICS | {"media"},
    "restore": BASICS | {"diffusion", "distributions", "learning", "media", "metrics", "pairs", "results"},
    "report": BASICS | {"media", "metrics", "results"},
    # the nerfstudio plugin and the commands use both
    "plugin.repairs": {"errors", "rasterize"},
    "plugin.data": {"errors", "views"},
    "plugin.restoration": BASICS
    | {"compress", "metrics", "plugin.data", "plugin.repairs", "references", "restore", "splats", "views"},
    "plugin.distill": SCENE - {"splats"} | {"media", "plugin.data", "plugin.restoration", "references"},
    "plugin.splat": SCENE
    | {"compress", "plugin.data", "plugin.distill", "plugin.repairs", "plugin.restoration", "rasterize"},
    "plugin": SCENE
    | {"compress", "metrics", "pairs", "references", "results"}
    | {"plugin.data", "plugin.distill", "plugin.repairs", "plugin.restoration", "plugin.splat"},
    "method": {"plugin", "plugin.data", "plugin.repairs", "plugin.splat"},
}
TOP = {"nifi_ns", "commands"}
"""Packages that may import everything."""
NESTED = tuple(name for name in ALLOWED if "." in name)


def module_of(file: Path) -> str:
    return ".".join(part for part in file.relative_to(ROOT).with_suffix("").parts if part != "__init__")


MODULES = {module_of(file): file for file in ROOT.rglob("*.py")}


def package_of(module: str) -> str:
    nested = next((name for name in NESTED if module == name or module.startswith(f"{name}.")), None)
    return nested or module.partition(".")[0] or "nifi_ns"


def imports_of(file: Path) -> set[str]:
    """Return the modules of this package that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in submodules if name.removeprefix("nifi_ns.") in MODULES} or {node.module or ""}
    return {name.removeprefix("nifi_ns").removeprefix(".") for name in found if name.partition(".")[0] == "nifi_ns"}


IMPORTS = {module: imports_of(file) - {module} for module, file in MODULES.items()}


def test_packages_import_only_allowed_packages() -> None:
    wrong = []
    for module, imported in IMPORTS.items():
        package = package_of(module)
        if package in TOP:
            continue
        assert package in ALLOWED, f"{package} is new: add the packages it may import to ALLOWED"
        others = {package_of(name) for name in imported} - {package}
        wrong += [f"{module} imports {other}" for other in sorted(others - ALLOWED[package])]
    assert wrong == []


def test_every_rule_names_existing_packages() -> None:
    packages = {package_of(module) for module in MODULES}
    assert set(ALLOWED) | TOP == packages
    assert {name for allowed in ALLOWED.values() for name in allowed} <= packages


def test_private_modules_are_imported_only_inside_their_package() -> None:
    wrong = []
    for module, imported in IMPORTS.items():
        for name in imported:
            private = any(part.startswith("_") for part in name.split("."))
            owner = name.rpartition("._")[0]
            if private and not module.startswith(owner):
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_modules_do_not_import_in_a_cycle() -> None:
    # imports by an __init__ of modules in its own package do not count
    graph = {
        module: {name for name in imported if not module.startswith(f"{name}.")} for module, imported in IMPORTS.items()
    }
    order: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in order:
            for name in sorted(graph[module]):
                visit(name, (*path, module))
            order[module] = len(order)

    for module in sorted(graph):
        visit(module, ())


def test_packages_do_not_import_in_a_cycle() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for module, imported in IMPORTS.items():
        package = package_of(module)
        graph[package] |= {package_of(name) for name in imported} - {package, "nifi_ns"}
    done: list[str] = []
    while graph:
        ready = [package for package, needed in graph.items() if needed <= set(done)]
        assert ready, f"cycle among {sorted(graph)}"
        done += ready
        for package in ready:
            del graph[package]


def loaded_by(statement: str) -> set[str]:
    """Return the top-level packages that are loaded after running a statement in a new interpreter."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_nerfstudio_commands_start_without_heavy_imports() -> None:
    assert not loaded_by("import nerfstudio.configs.method_configs, nifi_ns.method") & {
        *("diffusers", "transformers", "numba", "peft", "piq", "lpips"),
    }


@pytest.mark.parametrize(
    ("statement", "without"),
    [
        ("from nifi_ns.compress import decode", {"nerfstudio", "gsplat", "diffusers", "transformers"}),
        ("import nifi_ns.rasterize", {"nerfstudio", "diffusers", "transformers"}),
        ("import nifi_ns.references", {"nerfstudio", "gsplat", "diffusers", "transformers", "numba"}),
        ("from nifi_ns.restore import Restorer", {"nerfstudio", "gsplat", "diffusers", "transformers", "numba"}),
    ],
)
def test_parts_load_only_what_they_need(statement: str, without: set[str]) -> None:
    assert not loaded_by(statement) & without
