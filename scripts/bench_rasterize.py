"""Time whole training iterations on a CPU: our kernels against plain PyTorch.

    python scripts/bench_rasterize.py

An iteration covers activations, projection, spherical harmonics of degree 3, tile lists, blending, L1 + SSIM, the
backward pass with absgrad, and fused Adam. Each measurement runs in its own process, so that peak memory is separate.
Ratios refer to PyTorch's faster run, without the slowdown of denormal numbers. On a shared machine, compare CPU time
too, which excludes waiting.
"""

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from typing_extensions import assert_never

from nifi_ns.commands import run
from nifi_ns.results import Row, save

Implementation = Literal["torch", "kernels"]


@dataclass
class BenchRasterize:
    """Time whole training iterations: our CPU kernels against plain PyTorch."""

    gaussians: tuple[int, ...] = (20_000, 20_000, 100_000, 100_000)
    """Number of gaussians of each scene."""
    sizes: tuple[int, ...] = (256, 512, 256, 512)
    """Width and height of each scene's image."""
    iterations: int = 20
    """Maximum number of timed iterations, after two untimed ones."""
    seconds: float = 20.0
    """Start no iteration after this many seconds."""
    torch_threads: tuple[int, ...] = (1, 2)
    """Thread counts for plain PyTorch. Use 1 on a busy machine, where more threads take minutes."""
    output: Path = Path("results/bench_rasterize.json")
    """JSON file for the results, with a CSV beside it."""

    def main(self) -> None:
        """Measure, print a table and write the results."""
        runs: list[tuple[Implementation, int]] = [("torch", threads) for threads in self.torch_threads]
        runs.append(("kernels", 1))  # torch's threads would only compete with our own
        scenes = list(zip(self.gaussians, self.sizes, strict=True))
        load = os.getloadavg()[0]
        rows = []
        for n, size in track(scenes, "measuring", transient=True):
            rows += [_in_own_process(n, size, *which, self.iterations, self.seconds) for which in runs]
        save(self.output, rows, load_before=round(load, 2))
        console = Console()
        title = f"training iterations (load before: {load:.1f} on {os.cpu_count()} cores)"
        console.print(_table([row.flat() for row in rows], title))
        console.print(f"written to {self.output}")


def _in_own_process(
    n: int, size: int, implementation: Implementation, torch_threads: int, iterations: int, seconds: float
) -> Row:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        measured = pool.submit(measure, n, size, implementation, torch_threads, iterations, seconds).result()
    which = {"implementation": implementation, "torch_threads": torch_threads}
    return Row(f"random_{n}_{size}", "uncompressed", None, n, {}, more=which | measured)


def measure(
    n: int, size: int, implementation: Implementation, torch_threads: int, iterations: int, seconds: float
) -> dict[str, float]:
    """Return wall and CPU time of an iteration (median seconds), and peak memory and its growth (bytes)."""
    torch.set_num_threads(torch_threads)
    step = training(n, size, implementation)
    torch.set_flush_denormal(implementation == "torch")
    before = peak_memory()
    for _ in range(2):
        step()
    wall, cpu = [], []
    while len(wall) < iterations and sum(wall) < seconds:
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        step()
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    median, peak = statistics.median(wall), peak_memory()
    return {
        **{"seconds": median, "best_seconds": min(wall), "cpu_seconds": statistics.median(cpu), "timed": len(wall)},
        **{"iterations_per_second": 1 / median, "peak_memory": peak, "memory_growth": peak - before},
    }


def peak_memory() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def training(n: int, size: int, implementation: Implementation) -> Callable[[], None]:
    """Return a function that runs one training iteration on a random scene with about 45 alpha hits per pixel."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    spread = torch.tensor([2.2, 2.2, 1.0])
    means = (torch.rand(n, 3, generator=generator) * 2 - 1) * spread + torch.tensor([0, 0, 4.0])
    size_of_one = 0.035 * (20_000 / n) ** 0.5
    parameters = {
        "means": means,
        "quats": normal(n, 4),
        "scales": 0.5 * normal(n, 3) + torch.tensor(size_of_one).log(),
        "opacities": normal(n) - 1,
        "colors": 0.3 * normal(n, 16, 3),
    }
    tensors = {name: tensor.requires_grad_() for name, tensor in parameters.items()}
    camera: dict[str, Any] = {"viewmats": torch.eye(4)[None], "width": size, "height": size, "sh_degree": 3}
    camera["Ks"] = torch.tensor([[[0.9 * size, 0, size / 2], [0, 0.9 * size, size / 2], [0, 0, 1]]])
    photo = torch.rand(size, size, 3, generator=generator)
    optimizer = torch.optim.Adam(tensors.values(), lr=1e-4, fused=True)
    draw, ssim = _implementation(implementation)

    def step() -> None:
        activated = tensors | {"scales": tensors["scales"].exp(), "opacities": tensors["opacities"].sigmoid()}
        image = draw(**activated, **camera)[0][0]
        similarity = ssim(photo.permute(2, 0, 1)[None], image.permute(2, 0, 1)[None])
        (0.8 * (image - photo).abs().mean() + 0.2 * (1 - similarity)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _implementation(name: Implementation) -> tuple[Callable[..., Any], Callable[..., Tensor]]:
    """Return the render function and SSIM."""
    if name == "torch":
        from pytorch_msssim import SSIM

        from nifi_ns.rasterize import reference

        ssim = SSIM(data_range=1.0, size_average=True, channel=3)
        return lambda **arguments: reference.rasterization(**arguments, tiled=True), ssim
    if name == "kernels":
        from nifi_ns.rasterize import rasterization
        from nifi_ns.rasterize.ssim import SSIM

        return lambda **arguments: rasterization(**arguments, absgrad=True), SSIM()
    assert_never(name)


_NAMES = {"torch": "torch x {torch_threads}", "kernels": "kernels"}


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("gaussians", "image", "by"):
        table.add_column(name, no_wrap=True)
    for name in ("it/s", "ratio", "CPU ms", "ratio", "MB", "growth"):
        table.add_column(name, justify="right", no_wrap=True)
    slowest_first = sorted(rows, key=lambda r: -r["seconds"])
    baselines = {r["scene"]: r for r in slowest_first if r["implementation"] == "torch"}
    for r in rows:
        baseline = baselines.get(r["scene"]) if r["implementation"] == "kernels" else None
        ratio, cpu_ratio = (f"{baseline[k] / r[k]:.1f}x" if baseline else "" for k in ("seconds", "cpu_seconds"))
        table.add_row(
            *(f"{r['gaussians']:,}", r["scene"].split("_")[-1] + "²", _NAMES[r["implementation"]].format(**r)),
            *(f"{r['iterations_per_second']:.2f}", ratio),
            *(f"{1000 * r['cpu_seconds']:.0f}", cpu_ratio),
            *(f"{r['peak_memory'] / 1e6:.0f}", f"{r['memory_growth'] / 1e6:.0f}"),
        )
    return table


if __name__ == "__main__":
    run(BenchRasterize)
