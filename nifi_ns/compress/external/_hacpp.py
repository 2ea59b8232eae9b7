"""Run HAC++ (Chen et al. 2025, https://arxiv.org/abs/2501.12255) from the user's own checkout and environment.

The checkout, https://github.com/YihangChen-ee/HAC-plus, is for non-commercial use; nothing of it is imported or copied.
It trains, encodes, decodes and tests in one command. It decodes to anchors and view-dependent MLPs, not gaussians, so
its results are renders and bytes.
"""

import math
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from nifi_ns.compress.external._external import ExternalCodec, model_folder
from nifi_ns.errors import NifiError

_DATASETS = {"mip360": (0.001, 0.5), "tandt": (0.01, 0.1), "deepblending": (0.005, 0.08)}
"""Voxel size and `mask_lr_final` / lambda, as in HAC++'s scripts; only mip360 limits `mask_lr_final`."""
_MASK_LR_LIMIT = 0.0015

_MIB = 2**20
_STREAMS = {  # name of a part in the log: its files
    "anchor": "xyz_gpcc.npz",
    "feat": "feat_*.b",
    "scaling": "scaling_*.b",
    "offsets": "offsets_*.b",
    "hash": "hash.b",
    "masks": "masks.b",
}
_ROUNDING = 0.00005 * _MIB + 1  # the log has four decimals
_FILE_OVERHEAD = 16  # bytes; the log counts a stream's header of 8 or 12 bytes, but other revisions may not

# HAC++'s modules import everything it needs, including its four CUDA extensions; this must run in Python 3.7
_PROBE = """
import torch
if not torch.cuda.is_available():
    raise SystemExit("torch " + torch.__version__ + " sees no CUDA device")
import arguments, gaussian_renderer, lpips, scene, tqdm, wandb
"""
# restorers train on renders of the training views, which train.py writes only if this default is changed
_LAUNCH = """
import sys
sys.argv = sys.argv[1:]
__file__ = sys.argv[0]
with open(__file__, encoding="utf-8") as file:
    source = file.read().replace("skip_train=True", "skip_train=False")
exec(compile(source, __file__, "exec"), globals())
"""


@dataclass(frozen=True)
class HacppSettings:
    """Where HAC++ is installed, and how it compresses."""

    root: Path | None = None
    """A checkout of HAC-plus, installed as described in its README."""
    python: Path = Path("python")
    """The Python of HAC++'s environment, such as .../envs/HAC_env/bin/python."""
    lmbda: float = 0.5
    """Weight of the rate in the loss: larger is smaller. Sizes of scenes at the same lambda differ up to four-fold."""
    dataset: Literal["mip360", "tandt", "deepblending"] = "mip360"
    """Dataset whose voxel size and mask_lr_final are the defaults."""
    voxel_size: float | None = None
    """HAC++'s --voxel_size; by default that of the dataset."""
    mask_lr_final: float | None = None
    """HAC++'s --mask_lr_final; by default it grows with lambda."""
    iterations: int = 30_000
    """Training steps. The rate is part of the loss from step 10,000 on."""
    images: str = "images"
    """Folder of photos in the data, such as images_4 for quarter size. Wider photos are scaled down to 1600 pixels."""
    arguments: str = ""
    """More arguments for HAC++'s train.py, quoted as in a shell."""

    def __post_init__(self) -> None:
        for name in ("lmbda", "voxel_size", "mask_lr_final", "iterations"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                option = "lambda" if name == "lmbda" else name.replace("_", "-")
                raise NifiError(f"--{option} is {value}, expected more than 0")


def hacpp(settings: HacppSettings, data: Path, output: Path) -> ExternalCodec:
    """Return HAC++ for the COLMAP scene `data`, ready for `external.run` in `output`.

    Raises:
        NifiError: if no checkout is given, or `arguments` cannot be parsed.
    """
    if settings.root is None:
        raise NifiError("give --root: a checkout of github.com/YihangChen-ee/HAC-plus")
    root, data, model = settings.root.resolve(), data.resolve(), model_folder(output)
    voxel_size, slope = _DATASETS[settings.dataset]
    mask_lr = slope * settings.lmbda
    if settings.dataset == "mip360":
        mask_lr = min(mask_lr, _MASK_LR_LIMIT)
    options = {
        "-s": data,
        "--images": settings.images,
        "--lod": 0,
        "--voxel_size": f"{settings.voxel_size or voxel_size:g}",
        "--update_init_factor": 16,
        "--iterations": settings.iterations,
        "--test_iterations": settings.iterations,  # the step at which it encodes
        "--save_iterations": settings.iterations,
        "-m": model,
        "--lmbda": f"{settings.lmbda:g}",
        "--mask_lr_final": f"{settings.mask_lr_final or mask_lr:g}",
    }
    try:
        more = shlex.split(settings.arguments)
    except ValueError as error:
        raise NifiError(f"--arguments {settings.arguments!r} cannot be read: {error}") from error
    python = Path(shutil.which(settings.python) or settings.python).absolute()  # not resolved: a venv's is a link
    arguments = [text for option, value in options.items() for text in (option, str(value))]
    path = os.pathsep.join((str(python.parent), os.environ.get("PATH", os.defpath)))  # as in the active environment
    folders = {split: model / split / f"ours_{settings.iterations}" for split in ("train", "test")}
    return ExternalCodec(
        name="HAC++",
        scene=data.name,
        rate=f"hacpp-{settings.lmbda:g}",
        command=(str(python), "-c", _LAUNCH, "train.py", "--eval", *arguments, *more),
        pictures={
            "train": (folders["train"] / "renders", folders["train"] / "gt"),
            "test": (folders["test"] / "renders", folders["test"] / "gt"),
        },
        count_bytes=partial(count_bytes, model / "bitstreams"),
        check=partial(_check, root, python, path, data, settings.images, output),
        directory=root,
        environment={"PATH": path},
    )


def count_bytes(bitstreams: Path, log: str) -> int:
    """Return the bytes of all files in `bitstreams` plus those of the MLPs, which HAC++ counts but does not write.

    Raises:
        NifiError: if the files do not have the sizes in the log's "Encoded sizes in MB" (2^20 bytes).
    """
    logged = _logged_sizes(log)
    parts = sum(logged[name] for name in (*_STREAMS, "MLPs"))
    if abs(parts - logged["Total"]) > 8 * _ROUNDING + 24:  # the total includes six bounds
        raise NifiError(f"HAC++'s log is garbled: its parts are {parts:.0f} bytes, its total {logged['Total']:.0f}")
    for name, pattern in _STREAMS.items():
        files = list(bitstreams.glob(pattern))
        size = sum(file.stat().st_size for file in files)
        if not files or abs(size - logged[name]) > _ROUNDING + _FILE_OVERHEAD * len(files):
            raise NifiError(
                f"{bitstreams}: {pattern} has {size} bytes in {len(files)} files, but HAC++'s log says "
                f"{logged[name]:.0f} for {name}: files are missing or from another run; give another --output"
            )
    return sum(file.stat().st_size for file in bitstreams.rglob("*") if file.is_file()) + round(logged["MLPs"])


def _logged_sizes(log: str) -> dict[str, float]:
    """Return the bytes of each part, from the last line of sizes in the log."""
    lines = re.findall(r"Encoded sizes in MB:([^\r\n]*)", log)
    if not lines:
        raise NifiError("HAC++'s log has no line 'Encoded sizes in MB': HAC++ ended before it encoded the scene")
    try:
        sizes = {name: float(value) * _MIB for name, value in re.findall(r"(\w+) ([^\s,]+)", lines[-1])}
    except ValueError as error:
        raise NifiError(f"HAC++'s log is garbled: 'Encoded sizes in MB:{lines[-1]}' ({error})") from error
    wrong = [n for n in (*_STREAMS, "MLPs", "Total") if not (n in sizes and math.isfinite(sizes[n]) and sizes[n] >= 0)]
    if wrong:
        raise NifiError(f"HAC++'s log is garbled: no size of {wrong[0]} in 'Encoded sizes in MB:{lines[-1]}'")
    return sizes


def _check(root: Path, python: Path, path: str, data: Path, images: str, output: Path) -> None:
    """Raise NifiError for problems that would otherwise appear after hours of training."""
    if not (root / "train.py").is_file():
        raise NifiError(f"--root {root} has no train.py: give a checkout of HAC-plus")
    if output.resolve().is_relative_to(root):
        raise NifiError(f"--output {output} is inside --root, which HAC++ may copy to it: give another folder")
    if not (data / images).is_dir() or not any((data / images).iterdir()):
        raise NifiError(f"--data {data} has no photos in {images}/: HAC++ needs a COLMAP scene, images/ and sparse/0/")
    sparse = data / "sparse" / "0"
    for name in ("cameras", "images", "points3D"):
        if not any((sparse / f"{name}{suffix}").is_file() for suffix in (".bin", ".txt")):
            raise NifiError(f"--data {data} has no sparse/0/{name}.bin or .txt: HAC++ needs a COLMAP reconstruction")
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise NifiError(f"no python at {python}: give the Python of HAC++'s environment as --python")
    if shutil.which("tmc3", path=path) is None:
        raise NifiError("tmc3, which HAC++ needs, is not on PATH: build it from github.com/MPEGGroup/mpeg-pcc-tmc13")
    environment = {**os.environ, "PATH": path}
    probe = [str(python), "-c", _PROBE]
    try:
        probed = subprocess.run(probe, cwd=root, env=environment, capture_output=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NifiError(f"cannot check torch and HAC++'s modules with {python}: {error}") from error
    if probed.returncode:
        lines = probed.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {probed.returncode}"]
        raise NifiError(f"HAC++ cannot run in {python}: {lines[-1]}; give the Python of its environment as --python")
