"""Compare rate and distortion of our scene files with other codecs on the same splats.

    python scripts/bench_codec.py --load-config outputs/fox/nifi-splat-lite/demo/config.yml

For every run it measures the trained splats, with and without view-dependent colour, in formats that keep all
gaussians, and our smallest file of one level that loses at most `--max-drop` dB on the training photos, without
fine-tuning. Then it measures files of a given size: ours, fine-tuned on the training photos, and the first of the other
formats, decimated to as many gaussians as fit. Quality is measured on held-out photos, and every byte is counted. With
`--splat-transform`, PlayCanvas's program (npm package @playcanvas/splat-transform) writes the others and decimates by
merging pairs. Otherwise `nifi_ns.formats` writes them without the least important gaussians. `gsplat-png` is gsplat's
PngCompression without view-dependent colour and without PLAS, which needs CUDA: gaussians are in Morton order.

`--ablate` repeats our file of the first size with one part removed at a time, at the same steps. `--splats` measures
coding times of files without a run.
"""

import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nifi_ns import formats, metrics
from nifi_ns.commands import run
from nifi_ns.compress import (
    BITS,
    CompressionSettings,
    compress,
    compress_to_loss,
    decode,
    encode,
    measure_importance,
    target_bytes,
)
from nifi_ns.errors import NifiError
from nifi_ns.files import format_size
from nifi_ns.plugin.runs import Run, load_run
from nifi_ns.rasterize import render
from nifi_ns.results import Row, save
from nifi_ns.splats import Splats
from nifi_ns.views import spaced_views

_TRIES = 6  # attempts to decimate to a size
_ABLATIONS: dict[str, dict[str, Any]] = {
    "neither quantisers nor levels in the loop": {"quantize_from": 1.0},
    "pruned at once": {"stages": 1},
    "one level": {"lod_levels": 1},
    "coarser levels not optimised": {"lod_steps": 0.0},
    "no SSIM in the loss": {"ssim_weight": 0.0},
}


@dataclass
class BenchCodec:
    """Compare our scene files with other formats."""

    load_config: tuple[Path, ...] = ()
    """The config.yml of trained runs."""
    splats: tuple[Path, ...] = ()
    """Splats in any format to time."""
    sizes: tuple[str, ...] = ("11KB", "21KB", "52KB", "100KB")
    """Sizes to fine-tune to."""
    steps: int = CompressionSettings.steps
    """Steps of fine-tuning."""
    max_drop: float = 0.1
    """Maximum loss in dB on the training photos of a file without fine-tuning."""
    peers: tuple[str, ...] = (".sog", ".spz", ".compressed.ply")
    """Other formats, as suffixes. The first is also decimated to the sizes."""
    ablate: bool = False
    """Also measure the effect of each part of the fine-tuning."""
    splat_transform: str | None = None
    """PlayCanvas's splat-transform program."""
    output: Path = Path("results/bench_codec.json")
    """JSON file for the results, with a CSV and a PNG plot beside it."""

    def main(self) -> None:
        """Measure, print a table, and write the results and the plot."""
        if not self.load_config and not self.splats:
            raise NifiError("give at least one --load-config or --splats")
        for size in self.sizes:
            target_bytes(size)
        if unknown := set(self.peers) - set(formats.SUFFIXES):
            raise NifiError(f"--peers {unknown.pop()} is not one of {', '.join(formats.SUFFIXES)}")
        rows: list[Row] = []
        for more in self._measured():
            rows += more
            save(self.output, rows, peers=self.splat_transform or "nifi_ns.formats")
        Console().print(_table([row.flat() for row in rows]))
        if self.load_config:
            _plot([row.flat() for row in rows], self.output.with_suffix(".png"))
        print(f"written to {self.output}, .csv{' and .png' if self.load_config else ''}")

    def _measured(self) -> Iterator[list[Row]]:
        for path in self.splats:
            yield _timings(path)
        for config in self.load_config:
            opened = load_run(config)
            yield self._untuned(opened)
            for size in self.sizes:
                yield self._at_size(opened, size)
            if self.ablate:
                yield from self._ablations(opened, self.sizes[0])

    def _untuned(self, opened: Run) -> list[Row]:
        rows = []
        for degree in sorted({0, opened.uncompressed.sh_degree}):
            splats = opened.uncompressed.with_sh_degree(degree)
            rows.append(_row(opened, "ply", splats, splats.ply_size, "uncompressed"))
            for peer in self.peers:
                size, decoded = self._written(splats, peer)
                rows.append(_row(opened, peer[1:], decoded, size))
            if degree == 0:
                size, decoded = _gsplat_png(splats)
                rows.append(_row(opened, "gsplat-png", decoded, size))
            settings = CompressionSettings(steps=0, sh_degree=degree, lod_levels=1)
            made, seconds = _timed(
                lambda: compress_to_loss(splats, opened.train_views, self.max_drop, settings, **_drawn(opened))  # noqa: B023
            )
            rows.append(_row(opened, "nifi", made.splats, len(made.data), seconds=seconds))
        return rows

    def _at_size(self, opened: Run, size: str) -> list[Row]:
        settings = CompressionSettings(target_size=size, steps=self.steps)
        made, seconds = _timed(lambda: compress(opened.uncompressed, opened.train_views, settings, **_drawn(opened)))
        plain = compress(opened.uncompressed, opened.train_views, replace(settings, steps=0), **_drawn(opened))
        rows = [
            _row(opened, "nifi fine-tuned", made.splats, len(made.data), target=size, seconds=seconds),
            _row(opened, "nifi", plain.splats, len(plain.data), target=size),
        ]
        if (decimated := self._decimated(opened, target_bytes(size))) is not None:
            rows.append(_row(opened, f"{self.peers[0][1:]} decimated", decimated[1], decimated[0], target=size))
        return rows

    def _ablations(self, opened: Run, size: str) -> Iterator[list[Row]]:
        settings = CompressionSettings(target_size=size, steps=self.steps)
        for what, change in _ABLATIONS.items():
            changed = replace(settings, **change)
            made, seconds = _timed(lambda: compress(opened.uncompressed, opened.train_views, changed, **_drawn(opened)))  # noqa: B023
            yield [_row(opened, f"nifi, {what}", made.splats, len(made.data), target=size, seconds=seconds)]

    def _decimated(self, opened: Run, target: int) -> tuple[int, Splats] | None:
        """Return the first peer with as many gaussians as fit into `target` bytes; None if too few fit."""
        splats = opened.uncompressed.with_sh_degree(0)
        with torch.no_grad():
            importance = measure_importance(splats, spaced_views(opened.train_views, 96), **_drawn(opened))
        order = importance.opacity_sensitivity.argsort(descending=True)
        low, high, best = 1, len(splats), None
        count = min(high, max(1, target // 14))
        for _ in range(_TRIES):
            kept = splats if self.splat_transform else splats[order[:count]]
            size, decoded = self._written(kept, self.peers[0], count)
            if size <= target:
                low, best = count, (size, decoded)
            else:
                high = count
            count = min(max(round(count * 0.99 * target / size), low + 1), high - 1)
            if count <= low:
                break
        return best

    def _written(self, splats: Splats, suffix: str, count: int | None = None) -> tuple[int, Splats]:
        """Return the bytes of the splats in another format and the decoded splats."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"splats{suffix}"
            if self.splat_transform is None:
                formats.save(path, splats)
                return path.stat().st_size, formats.load(path)
            source = Path(folder) / "source.ply"
            formats.save(source, splats)
            self._transform(source, *(() if count is None else ("--decimate", str(count))), path)
            return path.stat().st_size, formats.load(path)

    def _transform(self, *arguments: str | Path) -> None:
        command = [self.splat_transform or "", "--quiet", "--overwrite", "--gpu", "cpu", *map(str, arguments)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise NifiError(f"cannot run --splat-transform {self.splat_transform}: {error.strerror}") from error
        if done.returncode:
            raise NifiError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-300:]}")


def _timings(path: Path) -> list[Row]:
    """Return times of our codec for the splats of a file, coarse and fine, at every SH degree."""
    splats, rows = formats.load(path), []
    encode(splats[torch.arange(min(len(splats), 100))], BITS["coarse"])  # compiles
    for degree in sorted({0, splats.sh_degree}):
        kept = splats.with_sh_degree(degree)
        for preset in ("coarse", "fine"):
            data, encoding = _timed(lambda: encode(kept, BITS[preset]))  # noqa: B023
            _, decoding = _timed(lambda: decode(data))  # noqa: B023
            timing = {"sh_degree": degree, "encode_seconds": encoding, "decode_seconds": decoding}
            more = timing | {"codec": f"nifi {preset}"}
            rows.append(Row(path.stem, "compressed", len(data), len(kept), {}, more=more))
    return rows


def _gsplat_png(splats: Splats) -> tuple[int, Splats]:
    """Return the bytes of gsplat's own compression without view-dependent colour, and the decoded splats."""
    from gsplat.compression import PngCompression

    from nifi_ns.morton import morton_codes

    side = math.isqrt(len(splats))
    kept = splats[splats.opacities.argsort(descending=True)[: side**2]]
    low, high = kept.means.amin(dim=0), kept.means.amax(dim=0)
    cells = ((kept.means - low) / (high - low).clamp_min(1e-9) * 1023).long().numpy()
    kept = kept[torch.from_numpy(morton_codes(cells, 10).argsort(kind="stable"))]
    values = {"means": kept.means, "scales": kept.scales, "quats": kept.quats, "opacities": kept.opacities}
    with tempfile.TemporaryDirectory() as folder:
        codec = PngCompression(use_sort=False, verbose=False)
        codec.compress(folder, values | {"sh0": kept.sh[:, :1]})
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        back = codec.decompress(folder)
    return size, Splats(*(back[name].float() for name in (*values, "sh0")))


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def _drawn(opened: Run) -> dict[str, Any]:
    config = opened.model.config
    return {"background": opened.model.background_color, "antialiased": config.rasterize_mode == "antialiased"}


@torch.no_grad()
def _row(opened: Run, codec: str, splats: Splats, size: int, variant: Any = "compressed", **extra: Any) -> Row:
    measured = []
    for view in opened.eval_views:
        assert view.image is not None
        image = render(splats.to(view.image.device), view, **_drawn(opened)).rgb.clamp(0, 1)
        measured.append(metrics.compute(image, view.image, names=metrics.REFERENCE_METRICS))
    more = {"codec": codec, "sh_degree": splats.sh_degree, **extra}
    return Row(opened.scene, variant, size, len(splats), metrics.mean(measured), more=more)


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="held-out photos, mean", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("scene", "codec"):
        table.add_column(name, no_wrap=True)
    for name in ("SH", "bytes", "of target", "gaussians", "bits each", "PSNR", "MS-SSIM", "HaarPSI", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in rows:
        target = f"{r['bytes'] / target_bytes(str(r['target'])):.1%}" if r.get("target") else "-"
        both = f"{r['encode_seconds']:.1f} + {r['decode_seconds']:.1f}" if "encode_seconds" in r else None
        table.add_row(
            *(r["scene"], r["codec"], str(r["sh_degree"]), format_size(r["bytes"]), target, f"{r['gaussians']:,}"),
            f"{8 * r['bytes'] / r['gaussians']:.1f}",
            *("-" if r.get(name) is None else f"{r[name]:.4g}" for name in ("psnr", "ms_ssim", "haarpsi")),
            both or (f"{r['seconds']:.0f}" if r.get("seconds") is not None else "-"),
        )
    return table


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in rows if r.get("psnr") is not None and ", " not in r["codec"]]
    scenes = list(dict.fromkeys(r["scene"] for r in rows))
    figure, axes = plt.subplots(1, len(scenes), figsize=(6 * len(scenes), 4.5), squeeze=False)
    for axis, scene in zip(axes[0], scenes, strict=True):
        for codec in dict.fromkeys(r["codec"] for r in rows if r["scene"] == scene):
            points = sorted((r["bytes"] / 1e3, r["psnr"]) for r in rows if (r["scene"], r["codec"]) == (scene, codec))
            axis.plot(*zip(*points, strict=True), marker="o", linestyle="-" if len(points) > 2 else "", label=codec)
        axis.set(title=scene, xscale="log", xlabel="KB", ylabel="PSNR of held-out photos, dB")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run(BenchCodec)
