"""Render the page of a report from a template, with all images and the plot embedded."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from nifi_ns.files import format_size
from nifi_ns.metrics import LOWER_IS_BETTER, METRICS, digits
from nifi_ns.results import Row

_LARGEST = 960  # longer side of images, in pixels
_QUALITY = 92
_MAX_CHANGE = 0.2  # the change, in [0, 1], that is drawn brightest
_ORDER = ("uncompressed", "compressed", "restored", "referenced")


@dataclass(frozen=True)
class ReportView:
    """A held-out view at one rate, ready for the page."""

    name: str
    rate: str
    pictures: dict[str, str]
    """Images as data URLs, by label: the photo, every variant, and the changes made by restoring."""

    @staticmethod
    def of(name: str, rate: str, photo: Tensor, shown: Mapping[Any, Tensor]) -> "ReportView":
        """Create a view from the photo and the renders by variant (`shown`), [H, W, 3] each, in [0, 1]."""
        pictures = {variant: _data_url(shown[variant]) for variant in _ORDER if variant in shown}
        for repaired in ("restored", "referenced"):
            if repaired in shown and "compressed" in shown:
                pictures[f"change by {repaired}"] = _data_url(_heat(shown[repaired] - shown["compressed"]))
        return ReportView(name, rate, {"photo": _data_url(photo), **pictures})


@dataclass(frozen=True)
class Report:
    """The contents of a report."""

    scene: str
    rows: Sequence[Row]
    """Rows of views and of their means; only means are shown."""
    views: Sequence[ReportView]
    files: Mapping[str, str]
    """Description of the scene file's contents, by rate."""
    commands: Sequence[str]
    """The commands that produced the numbers."""
    environment: Mapping[str, Any]
    """Versions and hardware, from `results.current_environment`."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Full text of settings, by title."""


def render_report(report: Report) -> str:
    """Return the page as self-contained HTML."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # keep the order of the images
    template = environment.get_template("report.html.j2")
    means = _means(report.rows)
    shown = [name for name in METRICS if any(row.metrics[name] is not None for row in means)]
    return template.render(
        report=report,
        heading=[f"{name} {'↓' if name in LOWER_IS_BETTER else '↑'}" for name in shown],
        table=[_cells(row, shown, means) for row in means],
        missing=[name for name in METRICS if name not in shown],
        plot=_plot(means),
        views=[{"name": view.name, "rate": view.rate, "pictures": view.pictures} for view in report.views],
    )


def _means(rows: Sequence[Row]) -> list[Row]:
    """Return one row of means per variant and size, the largest size first."""
    means = {(row.variant, row.bytes): row for row in rows if row.image is None}
    return sorted(means.values(), key=lambda row: (-(row.bytes or 0), _ORDER.index(row.variant)))


def _cells(row: Row, shown: Sequence[str], means: Sequence[Row]) -> dict[str, Any]:
    """Return a row of the table, with each value marked as better or worse than the compressed one."""
    base = next((m for m in means if m.variant == "compressed" and m.bytes == row.bytes), None)
    values = []
    for name in shown:
        value, before, better = row.metrics[name], None if base is None else base.metrics[name], ""
        if row.variant in ("restored", "referenced") and value is not None and before is not None:
            change = before - value if name in LOWER_IS_BETTER else value - before
            better = "better" if change > 0 else "worse" if change < 0 else ""
        values.append(("-" if value is None else f"{value:.{digits(name)}f}", better))
    count = "" if row.gaussians is None else f"{row.gaussians:,}"
    size = "" if row.bytes is None else format_size(row.bytes)
    return {"variant": row.variant, "size": size, "gaussians": count, "values": values}


def _plot(means: Sequence[Row]) -> str:
    """Return a plot of PSNR by size, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axis = figure.add_subplot()
    sized = [row for row in means if row.bytes is not None]
    for variant in _ORDER:
        points = sorted(((row.bytes or 0) / 1e3, row.metrics["psnr"] or 0) for row in sized if row.variant == variant)
        if points and variant == "uncompressed":
            axis.axhline(points[0][1], color="grey", linestyle="--", label=f"uncompressed, {points[0][0]:,.0f} KB")
        elif points:
            axis.plot(*zip(*points, strict=True), marker="o", label=variant)
    axis.set(xscale="log", xlabel="KB", ylabel="PSNR of held-out photos, dB")
    sizes = sorted({(row.bytes or 0) / 1e3 for row in sized if row.variant != "uncompressed"})
    axis.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _heat(change: Tensor) -> Tensor:
    """Return a heat map [H, W, 3], from black to white, of the mean absolute `change` [H, W, 3]."""
    from matplotlib import colormaps

    amount = (change.abs().mean(dim=-1) / _MAX_CHANGE).clamp(0, 1).cpu().numpy()
    return change.new_tensor(colormaps["inferno"](amount)[..., :3])


def _data_url(image: Tensor) -> str:
    pixels = (image.detach().float().clamp(0, 1) * 255).round().cpu().numpy().astype(np.uint8)
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
