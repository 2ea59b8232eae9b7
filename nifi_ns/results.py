"""The schema of all result files: rows of (scene, variant, bytes, metrics), and the environment.

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
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import format_size, write_text
from nifi_ns.metrics import LOWER_IS_BETTER, METRICS, digits

Variant = Literal["uncompressed", "compressed", "restored", "referenced"]
Value = float | str | None

_KEYS = ("scene", "variant", "bytes", "gaussians")
_PACKAGES = ("nifi-ns", "nerfstudio", "gsplat", "torch", "numba", "numpy", "diffusers", "peft", "piq", "lpips")


@dataclass(frozen=True)
class Row:
    """Measurements of a variant of a scene, for one view or as the mean of several."""

    scene: str
    variant: Variant
    bytes: int | None
    """Size of all that a decoder of this variant needs; None if there is no such file."""
    gaussians: int | None
    """Number of gaussians; None if unknown (foreign codecs, proxies)."""
    metrics: Mapping[str, float | None]
    """Value of each of `METRICS` by name; None if not given or not available."""
    rate: str | None = None
    """Size as the user wrote it: `25KB`."""
    image: str | None = None
    """Name of the view; None for a mean."""
    more: Mapping[str, Value] = field(default_factory=dict)
    """Additional columns, such as `consistency` or the options that a benchmark compares."""

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise ValueError(f"unknown variant {self.variant!r}, expected one of {get_args(Variant)}")
        if unknown := set(self.metrics) - set(METRICS):
            raise ValueError(f"unknown metrics {sorted(unknown)}, expected some of {METRICS}")
        texts, counts = (self.scene, self.rate, self.image), (self.bytes, self.gaussians)
        for kind, values in ((str, texts), (int, counts), ((int, float), self.metrics.values())):
            if wrong := [value for value in values if not (value is None or isinstance(value, kind))]:
                raise ValueError(f"unexpected value {wrong[0]!r} in a row of results")
        object.__setattr__(self, "metrics", {name: self.metrics.get(name) for name in METRICS})
        if twice := set(self.more) & {*_KEYS, *METRICS, "rate", "image"}:
            raise ValueError(f"additional columns {sorted(twice)} already exist")

    def flat(self) -> dict[str, Any]:
        """Return all columns in one mapping, as in files."""
        named = {name: value for name in ("rate", "image") if (value := getattr(self, name)) is not None}
        return {**{key: getattr(self, key) for key in _KEYS}, **self.metrics, **named, **self.more}

    @classmethod
    def from_flat(cls, columns: Mapping[str, Any]) -> "Row":
        """Return the row with these columns; the inverse of `flat`.

        Raises:
            KeyError: if a column other than a metric is missing. Older files lack newer metrics.
            ValueError: if a value has another type.
        """
        more = {key: value for key, value in columns.items() if key not in (*_KEYS, *METRICS, "rate", "image")}
        values = {name: columns.get(name) for name in METRICS}
        keys = {key: columns[key] for key in _KEYS}
        return cls(**keys, metrics=values, rate=columns.get("rate"), image=columns.get("image"), more=more)


def save(path: Path | str, rows: Sequence[Row], **environment: float | str | None) -> None:
    """Write `rows` and the environment to `path` (JSON), and the rows to a `.csv` beside it, each atomically."""
    path, columns_of = Path(path), [row.flat() for row in rows]
    document = {"rows": columns_of, "environment": {**current_environment(), **environment}}
    text = json.dumps(document, indent=1, allow_nan=False)
    columns = list(dict.fromkeys([*_KEYS, *METRICS, *(key for columns in columns_of for key in columns)]))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(columns_of)
    write_text(path, text + "\n")
    write_text(path.with_suffix(".csv"), table.getvalue())


def load(path: Path | str) -> list[Row]:
    """Read the rows of a file written by `save`.

    Raises:
        NifiError: if the file does not exist.
        CorruptFileError: if it does not follow the schema.
    """
    path = Path(path)
    if not path.is_file():
        raise NifiError(f"no such file: {path}")
    try:
        return [Row.from_flat(columns) for columns in json.loads(path.read_text())["rows"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path} does not hold results: {error!r}") from error


def current_environment() -> dict[str, float | str | None]:
    """Return versions, processor and device, without names of persons, hosts or folders."""
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
    """Print `table`. A narrow terminal drops the last metrics; files and pipes get long lines."""
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
    """Return a rich table of the mean rows (no `image`). Restored variants show their change from `compressed`.

    A row is compared with the compressed row of the same scene and bytes, or rate if there are no bytes. Repeated rows
    are omitted, such as the uncompressed splats of each rate. Metrics that no row has, or beyond the first `most`, are
    omitted and named in the caption.
    """
    means = list({(row.variant, *_group(row)): row for row in rows if row.image is None}.values())
    baselines = {_group(row): row for row in means if row.variant == "compressed"}
    measured = [name for name in METRICS if any(row.metrics[name] is not None for row in means)]
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
    for row in means:
        group = _group(row)
        if previous not in (None, group):
            output.add_section()
        previous = group
        baseline = baselines.get(group) if row.variant in ("restored", "referenced") else None
        size = row.rate or "" if row.bytes is None else format_size(row.bytes)
        count = "" if row.gaussians is None else f"{row.gaussians:,}"
        output.add_row(row.scene, row.variant, size, count, *(_cell(name, row, baseline) for name in shown))
    return output


def _group(row: Row) -> tuple[str, int | str | None]:
    """Return the scene, and the bytes or else the rate."""
    return row.scene, row.rate if row.bytes is None else row.bytes


def _cell(name: str, row: Row, baseline: Row | None) -> str:
    value, before = row.metrics[name], None if baseline is None else baseline.metrics[name]
    if value is None:
        return "-"
    if before is None:
        return f"{value:.{digits(name)}f}"
    change = round(value - before, digits(name))
    better = change < 0 if name in LOWER_IS_BETTER else change > 0
    style = "dim" if change == 0 else "green" if better else "red"
    return f"{value:.{digits(name)}f} [{style}]{change:+.{digits(name)}f}[/]"
