"""Procedural pairs: a textured photo, and the same seen through too few gaussians (blurred and blotched)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nifi_ns.pairs import PairFolder, PairWriter
from nifi_ns.pairs._folders import SPLITS


def photo(height: int, width: int, seed: int) -> Tensor:
    """[H, W, 3]: smooth colours with edges and fine stripes."""
    generator = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.rand(1, 3, 5, 5, generator=generator), (height, width), mode="bicubic")[0]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    stripes = 0.15 * torch.sin(x * torch.rand((), generator=generator) + y * torch.rand((), generator=generator))
    edge = 0.2 * ((x + y) % 23 > 11)
    return (smooth + stripes + edge).clamp(0, 1).movedim(0, -1)


def blurred(image: Tensor, factor: int = 3) -> Tensor:
    """[H, W, 3] with its fine detail gone."""
    batch = image.movedim(-1, 0)[None]
    small = F.avg_pool2d(batch, factor, ceil_mode=True)
    return F.interpolate(small, batch.shape[-2:], mode="bilinear")[0].movedim(0, -1)


def write_scene(
    root: Path,
    scene: str = "toy",
    rate: str = "25KB",
    train: int = 6,
    test: int = 2,
    size: tuple[int, int] = (40, 56),
    attended_photos: int = 0,
) -> PairFolder:
    """One scene at one rate under `root`, also with referenced views: halfway between degraded and clean.

    Each view refers to so many training views, which all show something else.
    """
    writer = PairWriter(
        root / scene / f"rate_{rate}", scene=scene, rate=rate, bytes=25_003, gaussians=3_000, fingerprint=rate
    )
    seed = 0
    for split, count in zip(SPLITS, (train, test), strict=True):
        for i in range(count):
            seed += 1
            clean = photo(*size, seed)
            names = [f"train{(i + k) % train}" for k in range(1, attended_photos + 1)]
            writer.add(split, f"{split}{i}", clean, blurred(clean), (clean + blurred(clean)) / 2, attended_photos=names)
    return writer.finish()
