"""Checks of the machine for `ns-nifi-selftest --checks-only`."""

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Literal

Level = Literal["OK", "note", "problem"]

_GB = 10**9
_REINSTALL = "install this package again: pip install . in a clone of it"


@dataclass(frozen=True)
class Check:
    """The result of one check, and what to do if it is not OK."""

    name: str
    level: Level
    """`note` means that an optional feature is missing."""
    found: str
    todo: str = ""


def run_checks(folder: Path) -> list[Check]:
    """Run all checks. `folder` is where results would be written. An exception in a check is reported as a problem."""
    return [_guarded(name, check, folder) for name, check in _CHECKS.items()]


def _guarded(name: str, check: "_CheckFunction", folder: Path) -> Check:
    try:
        level, found, *todo = check(folder)
        return Check(name, level, found, *todo)
    except Exception as error:  # such as a failed import in a broken installation
        return Check(name, "problem", f"{type(error).__name__}: {' '.join(str(error).split())}", _REINSTALL)


_Found = tuple[Level, str] | tuple[Level, str, str]  # level, found(, todo)
_CheckFunction = Callable[[Path], _Found]


def _python(_: Path) -> _Found:
    found = sys.version.split()[0]
    if (3, 10) <= sys.version_info < (3, 13):
        return "OK", found
    return "problem", found, "use Python 3.10, 3.11 or 3.12: nerfstudio 1.1.5 supports no other version"


def _torch(_: Path) -> _Found:
    import torch
    import torchvision

    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # fails if the two versions do not match
    return "OK", f"torch {torch.__version__}, torchvision {torchvision.__version__}"


def _gpu(_: Path) -> _Found:
    import torch

    if torch.cuda.is_available():
        torch.ones(1, device="cuda").add_(1).item()  # fails if torch was not built for this GPU
        memory = torch.cuda.get_device_properties(0).total_memory
        return "OK", f"{torch.cuda.get_device_name()}, {memory / _GB:.0f} GB, CUDA {torch.version.cuda}"
    if shutil.which("nvidia-smi"):
        todo = "run nvidia-smi; if the driver is too old for this torch, update it or install an older torch"
        return "note", f"nvidia-smi exists, but torch (CUDA {torch.version.cuda}) finds no GPU", todo
    return "note", "none: everything runs on the CPU", "train nifi-splat-lite, and restorers on nifi-tiny"


def _gsplat(_: Path) -> _Found:
    import torch

    found = f"gsplat {version('gsplat')}"
    if not torch.cuda.is_available():
        return "OK", f"{found}; on a CPU this package's own kernels render"
    from gsplat.cuda import _backend  # compiles gsplat's kernels if needed

    if _backend._C is None:
        todo = "install the nvcc of torch's CUDA version (and export CUDA_HOME), or a gsplat wheel with kernels"
        return "problem", f"{found} without its CUDA kernels", todo
    return "OK", f"{found} with its CUDA kernels"


def _compiler(_: Path) -> _Found:
    from nifi_ns.diffusion import cxx_compiler

    if found := cxx_compiler():
        return "OK", found
    return "note", "no C++ compiler", "apt-get install g++ for --compile, and for gsplat's kernels on a GPU"


def _ffmpeg(_: Path) -> _Found:
    found = shutil.which("ffmpeg")
    if found:
        return "OK", found
    import imageio_ffmpeg

    bundled = Path(imageio_ffmpeg.get_ffmpeg_exe()).name
    return (
        "note",
        f"only the one in imageio-ffmpeg ({bundled}), for ns-render and ns-nifi-process-data",
        "apt-get install colmap to make captures from photos with ns-nifi-process-data",
    )


def _metrics(_: Path) -> _Found:
    from nifi_ns.metrics import WEIGHTS, missing_weights

    missing = {what: missing_weights(*urls) for what, urls in WEIGHTS.items()}
    if not any(missing.values()):
        return "OK", "LPIPS and DISTS"
    absent = [what for what, urls in missing.items() if urls]
    which = "" if len(absent) == len(missing) else f"{', '.join(absent)} "
    files = " ".join(url for urls in missing.values() for url in urls)
    return (
        "note",
        f"{which}not downloaded; tables omit them, but the presets of SD3 and SD-Turbo choose by them",
        f"they are downloaded on first use; without a network put {files} into torch's cache, hub/checkpoints",
    )


def _nifi_tiny(_: Path) -> _Found:
    from nifi_ns.diffusion import Backbone

    backbone = Backbone.from_pretrained("nifi-tiny", "cpu")
    count = sum(p.numel() for part in (backbone.family.network, backbone.vae) for p in part.parameters())
    return "OK", f"{count / 1e6:.1f} million weights"


def _commands(_: Path) -> _Found:
    try:
        own = distribution("nifi-ns").entry_points
    except PackageNotFoundError:
        return "problem", "nifi-ns is not installed", _REINSTALL
    from nerfstudio.configs.method_configs import all_methods

    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    scripts = [point for point in own if point.group == "console_scripts"]
    methods = [point for point in own if point.group == "nerfstudio.method_configs"]
    broken = [point.name for point in scripts if shutil.which(point.name, path=beside) is None]
    broken += [point.name for point in methods if point.name not in all_methods]
    for point in scripts:
        importlib.import_module(point.module)
    if broken or not methods:
        return "problem", f"missing: {', '.join(broken) or 'all methods'}", _REINSTALL
    return "OK", f"{len(scripts)} ns-nifi commands; {', '.join(point.name for point in methods)}"


def _packages(_: Path) -> _Found:
    import cv2  # fails if system libraries are missing or two OpenCVs overwrote each other
    import numpy as np

    if int(np.__version__.partition(".")[0]) > 1:
        return "problem", f"numpy {np.__version__}", "pip install 'numpy<2', which nerfstudio 1.1.5 needs"
    return "OK", f"nerfstudio {version('nerfstudio')}, numpy {np.__version__}, OpenCV {cv2.__version__}"


def _memory(_: Path) -> _Found:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / _GB:.1f} of {memory.total / _GB:.1f} GB are available"
    if memory.available < 3 * _GB:
        return "note", found, "close other programs, or train on smaller photos"
    return "OK", found


def _disk(folder: Path) -> _Found:
    there = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / _GB:.1f} GB are free in {there}"
    if free < 0.5 * _GB:
        return "problem", found, "free disk space, or give an --output-dir on another disk"
    if free < 10 * _GB:
        return "note", found, "enough for small captures; runs on large ones and SD3's weights take 5 to 20 GB"
    return "OK", found


_CHECKS: dict[str, _CheckFunction] = {
    "Python": _python,
    "packages": _packages,
    "torch": _torch,
    "GPU": _gpu,
    "gsplat": _gsplat,
    "compiler": _compiler,
    "ffmpeg": _ffmpeg,
    "LPIPS, DISTS": _metrics,
    "nifi-tiny": _nifi_tiny,
    "commands": _commands,
    "memory": _memory,
    "disk": _disk,
}
