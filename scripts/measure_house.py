"""Measure the code base: packages, import cycles, duplicates, public names, words and start-up time.

python scripts/measure_house.py                      # this checkout
python scripts/measure_house.py --checkout ../other  # another checkout, in this environment

Only `ns-train --help` imports the checkout.
"""

import ast
import os
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from nifi_ns.commands import run
from nifi_ns.errors import NifiError

BLOCK = 6  # minimum lines of a duplicate, without blank lines and imports


def parse(package: Path) -> dict[str, ast.Module]:
    """Return the modules of a package by dotted name."""
    files = {file.relative_to(package.parent).with_suffix(""): file for file in sorted(package.rglob("*.py"))}
    return {".".join(p.parts).removesuffix(".__init__"): ast.parse(f.read_text(), str(f)) for p, f in files.items()}


def circles(trees: dict[str, ast.Module]) -> list[list[str]]:
    """Return groups of modules that import each other, including imports in functions and for type checkers."""
    reach: dict[str, set[str]] = {}
    for name, tree in trees.items():
        found: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names} & set(trees)
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(trees)
                found |= inner or {node.module} & set(trees)
        reach[name] = found - {name}
    for middle, beyond in reach.items():
        for targets in reach.values():
            if middle in targets:
                targets.update(beyond)
    groups = {frozenset(b for b in reach[a] if a in reach[b]) for a in reach if a in reach[a]}
    return sorted(sorted(group) for group in groups)


def public_names(trees: dict[str, ast.Module]) -> int:
    """Count public names: `__all__` if a module has it, else its definitions without an underscore."""
    count = 0
    for name, tree in trees.items():
        if not any(part.startswith("_") for part in name.split(".")):
            lists = [node for node in tree.body if isinstance(node, ast.Assign) and "__all__" in ast.unparse(node)]
            defined = {getattr(node, "name", "_") for node in tree.body}
            defined |= {t.id for node in tree.body for t in getattr(node, "targets", []) if isinstance(t, ast.Name)}
            names = ast.literal_eval(lists[0].value) if lists else defined
            count += sum(not name.startswith("_") for name in names)
    return count


def duplicated_lines(files: list[Path]) -> int:
    """Count lines in runs of at least `BLOCK` equal lines that occur more than once."""
    texts = [[line.strip() for line in file.read_text().splitlines()] for file in files]
    texts = [[line for line in text if line and not line.startswith(("import ", "from ", "#"))] for text in texts]
    blocks = [[tuple(text[i : i + BLOCK]) for i in range(len(text) - BLOCK + 1)] for text in texts]
    seen = Counter(block for of_file in blocks for block in of_file)
    starts = [(file, i) for file, of_file in enumerate(blocks) for i, block in enumerate(of_file) if seen[block] > 1]
    return len({(file, i + k) for file, i in starts for k in range(BLOCK)})


def start_up(checkout: Path) -> float:
    """Return the seconds of `ns-train --help`."""
    program = shutil.which("ns-train")
    if program is None:
        raise NifiError("no ns-train on PATH: activate the environment that nerfstudio is installed in")
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    subprocess.run([program, "--help"], env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


@dataclass
class MeasureHouse:
    """Print the size of each package and totals as Markdown tables."""

    checkout: Path = Path(__file__).parents[1]
    """A checkout of this project."""
    runs: int = 5
    """Number of ns-train starts to measure; 0 for none."""

    def main(self) -> None:
        """Measure and print the tables."""
        package = self.checkout / "nifi_ns"
        if not package.is_dir():
            raise NifiError(f"no nifi_ns/ in {self.checkout}: give a checkout of this project")
        lines = {file: len(file.read_text().splitlines()) for file in sorted(package.rglob("*.py"))}
        print("| package | files | lines | longest file |\n|---|---|---|---|")
        for room in [package, *sorted({file.parent for file in lines} - {package})]:
            inside = {file: count for file, count in lines.items() if file.parent == room}
            longest = max(inside, key=lambda file: inside[file])
            name = room.relative_to(self.checkout)
            print(f"| {name}/ | {len(inside)} | {sum(inside.values()):,} | {longest.name} {inside[longest]} |")
        trees = parse(package)
        found = [", ".join(group) for group in circles(trees)]
        print("\n| of all | |\n|---|---|")
        print(f"| files, lines | {len(lines)}, {sum(lines.values()):,} |")
        print(f"| files above 300 lines | {sum(count > 300 for count in lines.values())} |")
        print(f"| circles of imports | {'; '.join([str(len(found)), *found])} |")
        print(f"| lines in duplicates of {BLOCK} and more | {duplicated_lines(list(lines))} |")
        print(f"| public names | {public_names(trees)} |")
        print(f"| words of README.md | {len((self.checkout / 'README.md').read_text().split()):,} |")
        if seconds := [start_up(self.checkout) for _ in range(self.runs)]:
            each = ", ".join(f"{value:.1f}" for value in seconds)
            print(f"| ns-train --help | {median(seconds):.1f} s, median of {each} |")


if __name__ == "__main__":
    run(MeasureHouse)
