"""The one schema of every number the project writes: rows of (scene, variant, bytes, metrics), and the environment.

{"rows": [{"scene": "fox", "variant": "compressed", "bytes": 25003, "gaussians": 3000, "psnr": 25.3, ...}, ...],
 "environment": {"python": "3.11.7", "torch": "2.15.0", "device": "cpu", ...}}
"""

import csv
import io
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import format_size, write_text
from nifi_ns.metrics import LOWER_IS_BETTER, METRICS

Variant = Literal["uncompressed", "compressed", "restored", "referenced"]
Row = dict[str, Any]
"""Flat: `scene`, `variant`, `bytes`, `gaussians`, every metric (None where unavailable), then whatever else."""

_KEYS = ("scene", "variant", "bytes", "gaussians")
_PACKAGES = ("nifi-ns", "nerfstudio", "gsplat", "torch", "numba", "numpy", "diffusers", "peft", "piq", "lpips")
_DIGITS = {"psnr": 2}


def row(
    scene: str,
    variant: Variant,
    *,
    bytes: int | None,
    gaussians: int | None,
    metrics: Mapping[str, float | None],
    **extra: float | str | None,
) -> Row:
    """One row of the schema. `bytes` are all that a decoder of this variant needs; a row of one image says `image=`."""
    if variant not in get_args(Variant):
        raise ValueError(f"unknown variant {variant!r}, expected one of {get_args(Variant)}")
    if unknown := set(metrics) - set(METRICS):
        raise ValueError(f"unknown metrics {sorted(unknown)}, expected some of {METRICS}")
    values = {name: metrics.get(name) for name in METRICS}
    return {"scene": scene, "variant": variant, "bytes": bytes, "gaussians": gaussians, **values, **extra}


def save(path: Path | str, rows: Sequence[Row], **environment: float | str | None) -> None:
    """Write `rows` and the environment to `path` (JSON) and the rows to `path` with `.csv`, each atomically."""
    path = Path(path)
    document = {"rows": list(rows), "environment": {**current_environment(), **environment}}
    text = json.dumps(document, indent=1, allow_nan=False)
    columns = list(dict.fromkeys([*_KEYS, *METRICS, *(key for r in rows for key in r)]))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text + "\n")
    write_text(path.with_suffix(".csv"), table.getvalue())


def load(path: Path | str) -> list[Row]:
    """The rows of a file that `save` wrote.

    Raises:
        NifiError: if there is no such file.
        CorruptFileError: if it does not follow the schema.
    """
    path = Path(path)
    if not path.is_file():
        raise NifiError(f"no such file: {path}")
    try:
        rows = json.loads(path.read_text())["rows"]
        if missing := [key for r in rows for key in _KEYS if key not in r]:
            raise KeyError(missing[0])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} does not hold results: {error!r}") from error
    return [{**dict.fromkeys(METRICS), **r} for r in rows]  # files of before a metric was there lack it


def current_environment() -> dict[str, float | str | None]:
    """What numbers depend on: versions, processor, device. Nothing that names a person, a host or a folder."""
    import torch

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "python": platform.python_version(),
        **{package: installed(package) for package in _PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def show(rows: Sequence[Row], *, title: str | None = None) -> None:
    """Print `table`, without the last metrics where a terminal is too narrow; in files and pipes lines are long."""
    console = Console()
    roomy = console.options.update(max_width=1000)
    for most in range(len(METRICS), 0, -1):
        output = table(rows, title=title, most=most)
        width = Measurement.get(console, roomy, output).minimum
        if not console.is_terminal:
            console = Console(width=max(width, console.width))
        if width <= console.width:
            break
    console.print(output)


def table(rows: Iterable[Row], *, title: str | None = None, most: int = len(METRICS)) -> Table:
    """A rich table of the rows that are means (no `image`); restored variants show their change from `compressed`.

    A row is compared with the compressed row of the same scene and bytes, or rate where there are no bytes. Rows that
    repeat one above, as the splats before compression do for each rate, and metrics that no row has, or beyond the
    first `most`, are left out; the caption names the metrics.
    """
    means = list({(r["variant"], *_group(r)): r for r in rows if r.get("image") is None}.values())
    baselines = {_group(r): r for r in means if r["variant"] == "compressed"}
    measured = [name for name in METRICS if any(r[name] is not None for r in means)]
    absent, shown, left_out = [name for name in METRICS if name not in measured], measured[:most], measured[most:]
    captions = [f"unavailable here: {', '.join(absent)}"] if means and absent else []
    captions += [f"too wide to show here: {', '.join(left_out)}"] if left_out else []
    output = Table(title=title, caption="; ".join(captions) or None, box=SIMPLE_HEAD, padding=0, show_edge=False)
    for name in ("scene", "variant"):
        output.add_column(name, no_wrap=True)
    for name in ("bytes", "gaussians"):
        output.add_column(name, justify="right", no_wrap=True)
    for name in shown:
        output.add_column(f"{name} {'↓' if name in LOWER_IS_BETTER else '↑'}", justify="right", min_width=7)
    previous = None
    for r in means:
        group = _group(r)
        if previous not in (None, group):
            output.add_section()
        previous = group
        baseline = baselines.get(group) if r["variant"] in ("restored", "referenced") else None
        size = r.get("rate") or "" if r["bytes"] is None else format_size(r["bytes"])
        count = "" if r["gaussians"] is None else f"{r['gaussians']:,}"
        output.add_row(r["scene"], r["variant"], size, count, *(_cell(name, r, baseline) for name in shown))
    return output


def _group(r: Row) -> tuple[str, int | str | None]:
    """Scene, and bytes or what stands for them."""
    return r["scene"], r.get("rate") if r["bytes"] is None else r["bytes"]


def _cell(name: str, r: Row, baseline: Row | None) -> str:
    value = r[name]
    if value is None:
        return "-"
    digits = _DIGITS.get(name, 4)
    if baseline is None or baseline[name] is None:
        return f"{value:.{digits}f}"
    change = round(value - baseline[name], digits)
    better = change < 0 if name in LOWER_IS_BETTER else change > 0
    style = "dim" if change == 0 else "green" if better else "red"
    return f"{value:.{digits}f} [{style}]{change:+.{digits}f}[/]"
