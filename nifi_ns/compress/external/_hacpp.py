"""HAC++ (Chen et al. 2025, https://arxiv.org/abs/2501.12255), driven in the user's own checkout and environment.

The checkout, https://github.com/YihangChen-ee/HAC-plus, is for non-commercial use; nothing of it is imported or copied.
It trains, encodes, decodes and tests in one command. Its decoded model is anchors and view-dependent MLPs, not
gaussians, so that its results are renders and bytes.
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
"""Voxel size, and `mask_lr_final` over lambda, of HAC++'s own scripts; only that of mip360 has an upper limit."""
_MASK_LR_LIMIT = 0.0015

_MIB = 2**20
_STREAMS = {  # what the log calls a part: the files that hold it
    "anchor": "xyz_gpcc.npz",
    "feat": "feat_*.b",
    "scaling": "scaling_*.b",
    "offsets": "offsets_*.b",
    "hash": "hash.b",
    "masks": "masks.b",
}
_ROUNDING = 0.00005 * _MIB + 1  # the log has four decimals
_FILE_OVERHEAD = 16  # bytes; a stream's header of 8 or 12 is in the log's count, a revision's may not be

# HAC++'s own modules import all that it needs, its four CUDA extensions among them; Python 3.7 must understand this
_PROBE = """
import torch
if not torch.cuda.is_available():
    raise SystemExit("torch " + torch.__version__ + " sees no CUDA device")
import arguments, gaussian_renderer, lpips, scene, tqdm, wandb
"""
# train.py renders the training views only if one default is turned; restorers are trained on those
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
    """Where HAC++ is, and how it compresses."""

    root: Path | None = None
    """A checkout of HAC-plus, installed as its README says."""
    python: Path = Path("python")
    """The python of HAC++'s environment: .../envs/HAC_env/bin/python."""
    lmbda: float = 0.5
    """The weight of the rate: more is smaller. No handle on the size: scenes at one lambda differ four-fold."""
    dataset: Literal["mip360", "tandt", "deepblending"] = "mip360"
    """Whose voxel size and mask_lr_final to take where they are not given."""
    voxel_size: float | None = None
    """HAC++'s --voxel_size."""
    mask_lr_final: float | None = None
    """HAC++'s --mask_lr_final; by default it grows with lambda."""
    iterations: int = 30_000
    """Training steps. The rate is not part of the loss before step 10,000."""
    images: str = "images"
    """The folder of photos in the data: images_4 for the photos at a quarter. Wider ones are scaled to 1600 pixels."""
    arguments: str = ""
    """More arguments for its train.py, as a shell would have them."""

    def __post_init__(self) -> None:
        for name in ("lmbda", "voxel_size", "mask_lr_final", "iterations"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                option = "lambda" if name == "lmbda" else name.replace("_", "-")
                raise NifiError(f"--{option} is {value}, expected more than 0")


def hacpp(settings: HacppSettings, data: Path, output: Path) -> ExternalCodec:
    """Return HAC++ for the COLMAP scene `data`, to be run in `output` by `external.run`.

    Raises:
        NifiError: if no checkout was given, or the further arguments cannot be read.
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
        "--test_iterations": settings.iterations,  # the one at which it encodes
        "--save_iterations": settings.iterations,
        "-m": model,
        "--lmbda": f"{settings.lmbda:g}",
        "--mask_lr_final": f"{settings.mask_lr_final or mask_lr:g}",
    }
    try:
        more = shlex.split(settings.arguments)
    except ValueError as error:
        raise NifiError(f"--arguments {settings.arguments!r} cannot be read: {error}") from error
    python = Path(shutil.which(settings.python) or settings.python).absolute()  # unresolved: a venv's is a link
    arguments = [text for option, value in options.items() for text in (option, str(value))]
    path = os.pathsep.join((str(python.parent), os.environ.get("PATH", os.defpath)))  # as activating would have it
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
    """Return the bytes of all files of `bitstreams` and of the MLPs, which HAC++ counts but does not write there.

    Raises:
        NifiError: if the files are not those that the log's "Encoded sizes in MB" (2^20) speaks of.
    """
    logged = _logged_sizes(log)
    parts = sum(logged[name] for name in (*_STREAMS, "MLPs"))
    if abs(parts - logged["Total"]) > 8 * _ROUNDING + 24:  # the total also has six bounds
        raise NifiError(f"HAC++'s log is garbled: its parts are {parts:.0f} bytes, its total {logged['Total']:.0f}")
    for name, pattern in _STREAMS.items():
        files = list(bitstreams.glob(pattern))
        size = sum(file.stat().st_size for file in files)
        if not files or abs(size - logged[name]) > _ROUNDING + _FILE_OVERHEAD * len(files):
            raise NifiError(
                f"{bitstreams}: {pattern} has {size} bytes in {len(files)} files, but HAC++'s log says "
                f"{logged[name]:.0f} for {name}: files are missing, or not of this run; give another --output"
            )
    return sum(file.stat().st_size for file in bitstreams.rglob("*") if file.is_file()) + round(logged["MLPs"])


def _logged_sizes(log: str) -> dict[str, float]:
    """Return the bytes by part, from the last line of sizes."""
    lines = re.findall(r"Encoded sizes in MB:([^\r\n]*)", log)
    if not lines:
        raise NifiError("HAC++'s log has no line 'Encoded sizes in MB': it ended before it encoded anything")
    try:
        sizes = {name: float(value) * _MIB for name, value in re.findall(r"(\w+) ([^\s,]+)", lines[-1])}
    except ValueError as error:
        raise NifiError(f"HAC++'s log is garbled: 'Encoded sizes in MB:{lines[-1]}' ({error})") from error
    wrong = [n for n in (*_STREAMS, "MLPs", "Total") if not (n in sizes and math.isfinite(sizes[n]) and sizes[n] >= 0)]
    if wrong:
        raise NifiError(f"HAC++'s log is garbled: no size of {wrong[0]} in 'Encoded sizes in MB:{lines[-1]}'")
    return sizes


def _check(root: Path, python: Path, path: str, data: Path, images: str, output: Path) -> None:
    """Raise NifiError for whatever would fail after hours of training."""
    if not (root / "train.py").is_file():
        raise NifiError(f"--root {root} has no train.py: give a checkout of HAC-plus")
    if output.resolve().is_relative_to(root):
        raise NifiError(f"--output {output} is inside --root, which HAC++ may copy there: give another folder")
    if not (data / images).is_dir() or not any((data / images).iterdir()):
        raise NifiError(f"--data {data} has no photos in {images}/: HAC++ wants a COLMAP scene, images/ and sparse/0/")
    sparse = data / "sparse" / "0"
    for name in ("cameras", "images", "points3D"):
        if not any((sparse / f"{name}{suffix}").is_file() for suffix in (".bin", ".txt")):
            raise NifiError(f"--data {data} has no sparse/0/{name}.bin or .txt: HAC++ wants a COLMAP reconstruction")
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise NifiError(f"no python at {python}: give that of HAC++'s environment as --python")
    if shutil.which("tmc3", path=path) is None:
        raise NifiError("tmc3 is not on PATH: HAC++ needs it, build it from github.com/MPEGGroup/mpeg-pcc-tmc13")
    environment = {**os.environ, "PATH": path}
    probe = [str(python), "-c", _PROBE]
    try:
        asked = subprocess.run(probe, cwd=root, env=environment, capture_output=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NifiError(f"{python} cannot be asked for torch and HAC++'s modules: {error}") from error
    if asked.returncode:
        said = asked.stderr.decode(errors="replace").strip().splitlines() or [f"it ended with {asked.returncode}"]
        raise NifiError(f"HAC++ cannot run in {python}: {said[-1]}; give its environment's as --python")
