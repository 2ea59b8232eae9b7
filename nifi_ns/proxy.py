"""Proxy artefacts: degrade clean photos directly, to train restorers without splats.

`blotches` imitate coarse splats with too few gaussians, fitted to the photo in a few steps. The other degradations are
common in the training of image restorers. Everything runs on the CPU.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nifi_ns.errors import check_fields
from nifi_ns.rasterize import render, single_torch_thread
from nifi_ns.splats import SH_C0, Splats
from nifi_ns.views import View

Degradation = Literal["blotches", "blur", "downsample", "quantize", "jpeg"]
DEGRADATIONS: tuple[Degradation, ...] = get_args(Degradation)
SMALLEST = 16
"""Minimum size of the shorter side of a photo, in pixels; smaller photos would have only a few gaussians."""

_CHANCE = {"blotches": 1.0, "blur": 0.25, "downsample": 0.25, "quantize": 0.25, "jpeg": 0.25}
_FITTING_STEPS = 30, 200


@dataclass(frozen=True)
class ProxySettings:
    """How clean photos are degraded."""

    strengths: tuple[float, ...] = (0.25, 0.5, 1.0)
    """Strengths above 0 and up to 1. Every photo is degraded once at each; each is a rate, such as proxy-0.25."""
    degradations: tuple[Degradation, ...] = DEGRADATIONS
    """Degradations to choose from. Every photo gets blotches, if listed, and a random mix of the others."""
    max_side: int = 1600
    """Photos with a longer side are scaled down to this many pixels."""
    seed: int = 0
    """Seed for all random choices."""

    def __post_init__(self) -> None:
        checks = {
            "strengths": (
                bool(self.strengths)
                and all(0 < s <= 1 for s in self.strengths)
                and len(set(map(rate_of, self.strengths))) == len(self.strengths),
                "different numbers above 0 and at most 1",
            ),
            "degradations": (bool(self.degradations), f"some of {', '.join(DEGRADATIONS)}"),
            "max_side": (self.max_side >= SMALLEST, f"{SMALLEST} or more"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        check_fields(self, "proxy", checks)


def rate_of(strength: float) -> str:
    """Return the name of the rate of a strength in pairs and tables, such as `proxy-0.5`."""
    return f"proxy-{strength:g}"


def degrade(
    photo: Tensor,
    strength: float,
    rng: np.random.Generator,
    degradations: Sequence[Degradation] = DEGRADATIONS,
) -> Tensor:
    """Apply a random mix of degradations to a photo, each at 0.5 to 1 times `strength`, in the order of `DEGRADATIONS`.

    Blotches are always applied if they are in `degradations`: almost clean photos would teach a restorer to do nothing.

    Args:
        photo: [H, W, 3] in [0, 1], at least `SMALLEST` pixels along each side, on the CPU.
        strength: above 0 and at most 1.
        rng: generator of all random choices; equal generators give equal results.
        degradations: degradations to choose from; at least one is applied.

    Returns:
        [H, W, 3] in [0, 1].
    """
    chosen: list[Degradation] = [name for name in DEGRADATIONS if name in degradations and rng.random() < _CHANCE[name]]
    if not chosen:
        chosen = [degradations[int(rng.integers(len(degradations)))]]
    for name in chosen:
        photo = _APPLY[name](photo, strength * rng.uniform(0.5, 1), rng)
    return photo


def blotches(photo: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Fit too few gaussians to the photo: one per 15 pixels at strength 0.25, per 28 at 0.5, per 100 at 1.

    They are small and dense where there is detail. Fitting makes them long along edges. Some photos are fitted well, as
    by fine-tuned splats; others only briefly. In the latter, noise on the gaussians imitates coarse quantisation and
    views far from the training views, which show needles and blotches.
    """
    height, width, _ = photo.shape
    fit = rng.random()
    side, background = max(height, width), photo.mean(dim=(0, 1))
    splats = _scattered(photo, math.ceil(height * width / (8 * 12.5**strength)), rng)
    view = View(
        "photo", torch.eye(4), torch.tensor([[side, 0, width / 2], [0, side, height / 2], [0, 0, 1]]), width, height
    )
    rates = {"means": 0.3 / side, "scales": 0.05, "quats": 0.05, "opacities": 0.1, "sh": 0.1}
    parameters = [{"params": [getattr(splats, name).requires_grad_()], "lr": rate} for name, rate in rates.items()]
    optimizer = torch.optim.Adam(parameters, eps=1e-15)
    with single_torch_thread(splats.device):
        for _ in range(round(_FITTING_STEPS[0] * (_FITTING_STEPS[1] / _FITTING_STEPS[0]) ** fit)):
            optimizer.zero_grad()
            (render(splats, view, background=background).rgb - photo).abs().mean().backward()
            optimizer.step()
    splats, noise = splats.detach(), 1 - fit
    splats.means += noise * 0.3 * splats.scales[:, :2].exp().mean(dim=1, keepdim=True) * _normal(rng, len(splats), 3)
    splats.scales += noise * 0.15 * _normal(rng, len(splats), 3)
    splats.sh += noise * 0.06 * _normal(rng, len(splats), 1, 3)
    return render(splats, view, background=background).rgb.clamp(0, 1)


def _scattered(photo: Tensor, count: int, rng: np.random.Generator) -> Splats:
    """Return a wall of flat gaussians in front of a camera at the origin, small gaussians before large ones."""
    height, width, _ = photo.shape
    nchw = photo.movedim(-1, 0)[None]
    detail = (nchw - F.avg_pool2d(nchw, 5, 1, 2, count_include_pad=False)).abs().mean(dim=1).flatten().double()
    density = detail / detail.mean().clamp(min=1e-6) + 0.15
    density /= density.sum()
    cells = torch.from_numpy(rng.choice(height * width, count, p=density.numpy()))
    dx, dy, turn = torch.from_numpy(rng.random((3, count), np.float32)) * torch.tensor([[1], [1], [math.pi]])
    sigma = 0.6 / (count * density[cells]).sqrt().float()
    depth = 1 + 0.5 * sigma.argsort().argsort() / count
    unit, none, thin = torch.ones(count), torch.zeros(count), torch.full((count,), 1e-3)
    side = max(height, width)
    x, y = (cells % width + dx - width / 2) / side, (cells // width + dy - height / 2) / side
    means = torch.stack([x, y, unit], dim=1) * depth[:, None]
    scales = torch.stack([sigma, sigma, thin], dim=1) / side * depth[:, None]
    quats = torch.stack([turn.cos(), none, none, turn.sin()], dim=1)
    colours = (photo.reshape(-1, 3)[cells, None] - 0.5) / SH_C0
    return Splats(means, scales.log() + 0.3 * _normal(rng, count, 3), quats, 1 + 1.5 * _normal(rng, count), colours)


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, np.float32))


def blur(photo: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Blur the photo with a gaussian of 0.5 to 3 pixels along a random direction, and narrower across it."""
    long = 0.5 + 2.5 * strength
    short, turn, radius = long * rng.uniform(0.3, 1), rng.uniform(0, math.pi), math.ceil(3 * long)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    u, v = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    kernel = torch.from_numpy(np.exp(-0.5 * ((u / long) ** 2 + (v / short) ** 2))).to(photo)
    padded = F.pad(photo.movedim(-1, 0)[None], [radius] * 4, mode="replicate")
    return F.conv2d(padded, (kernel / kernel.sum()).expand(3, 1, -1, -1), groups=3)[0].movedim(0, -1).clamp(0, 1)


def downsample(photo: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Scale the photo down by a factor of up to 5, and back up with a random interpolation."""
    height, width, _ = photo.shape
    factor = 1 + 4 * strength
    pixels = photo.movedim(-1, 0)[None]
    small = F.interpolate(pixels, (math.ceil(height / factor), math.ceil(width / factor)), mode="area")
    mode = ("nearest", "bilinear", "bicubic")[rng.integers(3)]
    return F.interpolate(small, (height, width), mode=mode)[0].movedim(0, -1).clamp(0, 1)


def quantize(photo: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Quantise each channel to 48 (weak) down to 12 (strong) values, with a random offset."""
    step = 1 / (round(48 * (12 / 48) ** strength) - 1)
    offset = step * torch.from_numpy(rng.uniform(-0.5, 0.5, 3)).to(photo)
    return (((photo - offset) / step).round() * step + offset).clamp(0, 1)


def jpeg(photo: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Compress the photo as JPEG of quality 60 (weak) down to 8 (strong), with or without halved chroma."""
    file = io.BytesIO()
    pixels = photo.mul(255).round().to(torch.uint8).numpy()
    quality, subsampling = round(60 * (8 / 60) ** strength), int(rng.choice([0, 2]))
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return torch.from_numpy(np.array(Image.open(file))).to(photo) / 255


_APPLY: dict[Degradation, Callable[[Tensor, float, np.random.Generator], Tensor]] = {
    "blotches": blotches,
    "blur": blur,
    "downsample": downsample,
    "quantize": quantize,
    "jpeg": jpeg,
}
"""Functions from a photo [H, W, 3] in [0, 1], a strength and a generator to the degraded photo."""
