"""Measure how fast views are restored, and the limit of this machine.

    python scripts/bench_inference.py                                    # nifi-tiny on the GPU or CPU
    python scripts/bench_inference.py --backbones sd3 sd-turbo --device cuda --compile default

SD3 medium and SD-Turbo have real shapes and random weights, because time does not depend on the values. Without a GPU
only their operations are counted, on tensors without content. The floor is the time for the operations of a frame at
the rate of this machine's best matrix product. It cannot be reached, because memory must also be read and written.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from _architectures import ARCHITECTURES, random_backbone, schedule_of, without_content
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nifi_ns import results
from nifi_ns.commands import run
from nifi_ns.diffusion import NIFI_TINY, Backbone, CompileMode
from nifi_ns.errors import NifiError
from nifi_ns.files import write_text
from nifi_ns.restore import Restorer, RestorerSettings

_REPEATS = 5
_MATRIX = {"cpu": 2048, "cuda": 8192}
_RANK = 16


@dataclass
class BenchInference:
    """Compare the time of a restored frame with the time of its operations."""

    backbones: tuple[Literal["nifi-tiny", "sd3", "sd-turbo"], ...] = ("nifi-tiny",)
    """Backbones to measure."""
    width: int = 960
    """Width of the frame in pixels."""
    height: int = 640
    """Height of the frame in pixels."""
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """Device to use."""
    compile: CompileMode | None = None
    """Also measure networks compiled with this mode of torch.compile."""
    output: Path = Path("results/bench_inference.json")
    """JSON file for the results."""

    def main(self) -> None:
        """Measure, print a table and write the results."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise NifiError("--device cuda: there is no GPU")
        if min(self.width, self.height) < 64:
            raise NifiError("--width and --height must be 64 or more")
        rows = [row for name in self.backbones for row in self._measured(name)]
        document = {"rows": rows, "environment": results.current_environment()}
        write_text(self.output, json.dumps(document, indent=1) + "\n")
        table = Table(title=f"{self.width}x{self.height}, {self.device}", box=SIMPLE_HEAD, pad_edge=False)
        for name in (
            "",
            "TFLOP",
            "TFLOP/s at most",
            "floor, ms",
            "ms",
            "of the floor",
            "ms a megapixel",
            "GB",
        ):
            table.add_column(name, justify="right" if name else "left")
        for r in rows:
            measured = "-" if r["ms"] is None else f"{r['ms']:.0f}"
            share = "-" if r["ms"] is None else f"{r['ms'] / r['floor_ms']:.1f}x"
            each = "-" if r["ms"] is None else f"{r['ms'] * 1e6 / (self.width * self.height):.0f}"
            memory = "-" if r["bytes"] is None else f"{r['bytes'] / 1e9:.2f}"
            rate, floor = f"{r['peak_flops'] / 1e12:.2f}", f"{r['floor_ms']:.0f}"
            table.add_row(r["what"], f"{r['flop'] / 1e12:.2f}", rate, floor, measured, share, each, memory)
        Console(width=max(Console().width, 120)).print(table)

    def _measured(self, name: str) -> list[dict[str, Any]]:
        device = torch.device(self.device)
        dtype = torch.float32 if name == NIFI_TINY or self.device == "cpu" else torch.bfloat16
        frame = torch.rand(1, 3, self.height, self.width)
        peak = _peak(device, dtype)
        if name in ARCHITECTURES and self.device == "cpu":
            schedule = schedule_of(name)
            with without_content():
                backbone = random_backbone(name, schedule, device, dtype)
                restorer = Restorer(_with_adapters(backbone), _settings(name))
                flop = _flop(lambda: restorer(torch.rand(1, 3, self.height, self.width)))
            return [_row(f"{name}, calculated", flop, peak, None, None)]
        backbone = (
            Backbone.from_pretrained(name, device)
            if name == NIFI_TINY
            else random_backbone(name, schedule_of(name), device, dtype)
        )
        restorer = Restorer(_with_adapters(backbone), _settings(name))
        frame = frame.to(device)
        flop = _flop(lambda: restorer(frame))
        rows = [_row(name, flop, peak, *_timed(lambda: restorer(frame), device))]
        if self.compile is not None:
            backbone.compile(self.compile)
            rows.append(_row(f"{name}, compiled", flop, peak, *_timed(lambda: restorer(frame), device)))
        return rows


def _settings(name: str) -> RestorerSettings:
    """Return the default settings of each backbone. nifi-tiny restores without noise."""
    return RestorerSettings(t0=50, noise_scale=0.0) if name == NIFI_TINY else RestorerSettings()


def _with_adapters(backbone: Backbone) -> Backbone:
    backbone.add_adapters(_RANK, _RANK)
    return backbone


def _flop(work: Callable[[], Any]) -> int:
    """Return the number of multiplications and additions of `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[float, int | None]:
    """Return the median milliseconds, and on a GPU the peak bytes in use."""
    work()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(_REPEATS):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        times.append(1e3 * (time.perf_counter() - started))
    used = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return sorted(times)[_REPEATS // 2], used


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second of a large matrix product, the best of several."""
    side = _MATRIX[device.type]
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(2 * _REPEATS):
        _wait(device)
        started = time.perf_counter()
        product: Tensor = a @ b
        _wait(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
        del product
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _row(what: str, flop: int, peak: float, ms: float | None, used: int | None) -> dict[str, Any]:
    floor = 1e3 * flop / peak
    return {"what": what, "flop": flop, "peak_flops": peak, "floor_ms": floor, "ms": ms, "bytes": used}


if __name__ == "__main__":
    run(BenchInference)
