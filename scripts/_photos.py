"""Training crops for pretrain_tiny from photos and procedural textures."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nifi_ns.errors import NifiError
from nifi_ns.media import read_picture

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
_TEXTURES, _TEXTURE_SIDE = 24, 256


class Photos:
    """Photos in memory, with every fifth held out, and procedural textures for training."""

    def __init__(self, folders: tuple[Path, ...], seed: int) -> None:
        files = sorted(
            (f for d in folders for f in d.rglob("*") if f.suffix.lower() in _SUFFIXES), key=lambda f: f.name
        )
        if len(files) < 5:
            where = ", ".join(map(str, folders))
            raise NifiError(
                f"{len(files)} images in {where}: expected at least 5 (PNG, JPEG or WebP), every fifth is held out"
            )
        images = [_read(file) for file in files]
        self.held_out = images[2::5]
        self.training = [image for i, image in enumerate(images) if i % 5 != 2]
        self._textures = [_dead_leaves(seed * 1000 + i) for i in range(_TEXTURES)]
        self.names = [file.name for i, file in enumerate(files) if i % 5 != 2]
        self.held_out_names = [file.name for file in files[2::5]]

    def crops(self, batch: int, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return random crops [batch, 3, height, width] in [0, 1], and [batch] whether each is from a photo.

        Scale, position, flips and colours are random.
        """

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        def choice(n: int) -> int:
            return int(torch.randint(n, (), generator=generator))

        crops, is_photo = [], []
        for _ in range(batch):
            is_photo.append(uniform(0, 1) < 0.85)
            source = self.training if is_photo[-1] else self._textures
            image = source[choice(len(source))]
            if choice(2):
                image = image.transpose(1, 2)
            scale = max(uniform(0.5, 1.0), height / image.shape[1], width / image.shape[2])
            h, w = min(image.shape[1], round(height / scale)), min(image.shape[2], round(width / scale))
            y, x = choice(image.shape[1] - h + 1), choice(image.shape[2] - w + 1)
            crop = image[:, y : y + h, x : x + w]
            if scale != 1:
                crop = F.interpolate(crop[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[
                    0
                ]
            flips = [axis + 1 for axis in range(2) if choice(2)]
            crop = crop.flip(flips) if flips else crop
            gains = torch.tensor([uniform(0.85, 1.15) for _ in range(3)])[:, None, None] * uniform(0.7, 1.15)
            crops.append((crop * gains).clamp(0, 1) ** uniform(0.8, 1.25))
        return torch.stack(crops), torch.tensor(is_photo)


def _read(file: Path) -> Tensor:
    return torch.from_numpy(read_picture(file)).permute(2, 0, 1).float() / 255


def _dead_leaves(seed: int) -> Tensor:
    """Return [3, S, S] of occluding textured shapes with power-law sizes, whose statistics resemble photos."""
    random = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(shape, generator=random)  # noqa: E731
    side = _TEXTURE_SIDE
    frequency = torch.fft.fftfreq(side)[:, None].square() + torch.fft.fftfreq(side)[None].square()
    spectrum = torch.fft.fft2(torch.randn(4, side, side, generator=random)) / (frequency.sqrt() + 2 / side) ** 1.2
    clouds = torch.fft.ifft2(spectrum).real
    clouds = clouds / clouds.std((1, 2), keepdim=True)
    image = 0.5 + 0.15 * clouds[:3]
    ys, xs = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    for _ in range(150):
        radius = 6 * (side / 24) ** float(rand()) ** 1.5
        (cy, cx), angle, aspect = (rand(2) * side).tolist(), float(rand()) * math.pi, 0.3 + 0.7 * float(rand())
        u = (xs - cx) * math.cos(angle) + (ys - cy) * math.sin(angle)
        v = ((ys - cy) * math.cos(angle) - (xs - cx) * math.sin(angle)) / aspect
        inside = (u.abs().maximum(v.abs()) if rand() < 0.3 else (u * u + v * v).sqrt()) < radius
        colour = rand(3)[:, None, None] * 0.8 + 0.1
        stripes = torch.sin(u * (0.1 + 1.2 * float(rand()))) * float(rand()) * 0.15 * (rand() < 0.3)
        shading = 0.12 * (u / radius) * float(rand()) + stripes + 0.12 * float(rand()) * clouds[3].roll(int(cy), 0)
        image = torch.where(inside, colour + shading, image)
    return image.clamp(0, 1)
