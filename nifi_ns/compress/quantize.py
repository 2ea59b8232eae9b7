"""Splats <-> integers: the lossy half of the codec, in torch, the same on every device.

What is quantised, and how:

- **means**: contracted as in mip-NeRF 360 (Barron et al. 2022, eq. 10), which keeps the middle of the scene as it is
  and folds everything outside into a shell, so that a step is about one size in the pictures; then a cubic grid.
- **scales**: natural logarithms, uniform, axes sorted from longest to shortest.
- **quats**: with the axes sorted, a rotation counts modulo half turns about them, so w can always be made the largest
  component; then modified Rodrigues parameters v / (1 + w), whose grid is nearly uniform in angle. The rounder a
  gaussian, the fewer bits its rotation gets.
- **opacities**: uniform in alpha.
- **sh**: YCoCg of each SH coefficient, uniform, with coarser chroma.

How many bits a rotation has follows from the quantised scales in integers (`Grid.quat_skips`), and every decoded value
is made of single IEEE additions, products, quotients and square roots, or looked up: two machines decode the same.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nifi_ns.compress.grid import MAX_SKIP, Bits, Grid, contract, expand, squared_norm
from nifi_ns.compress.rotations import canonical
from nifi_ns.splats import SH_C0, Splats

MAX_SYMBOLS = 1 << 16
"""Largest alphabet of a quantised channel."""
MAX_DEPTH = 20
"""Largest number of bits of a quantised coordinate."""
_MOST = (MAX_SYMBOLS // 2 - 1) >> MAX_SKIP << MAX_SKIP


@dataclass
class Quantized:
    """N gaussians as integers (int64 tensors)."""

    means: Tensor
    """[N, 3] grid coordinates, 0 to 2^20 - 1."""
    scales: Tensor
    """[N, 3] log-scale steps, not increasing along the last axis."""
    quats: Tensor
    """[N, 3] modified Rodrigues steps, multiples of 2^quat_skips."""
    opacities: Tensor
    """[N] alpha levels, from 0."""
    sh: Tensor
    """[N, (degree + 1)^2, 3] YCoCg steps."""

    @property
    def sh_degree(self) -> int:
        """0 to 3."""
        return math.isqrt(self.sh.shape[1]) - 1

    def to(self, device: torch.device | str) -> "Quantized":
        """The same integers on `device`."""
        return Quantized(*(getattr(self, f.name).to(device) for f in fields(self)))

    def __getitem__(self, index: Tensor) -> "Quantized":
        """The gaussians selected by `index`."""
        return Quantized(*(getattr(self, f.name)[index] for f in fields(self)))


def quantize(splats: Splats, grid: Grid) -> Quantized:
    """Round to the grid, in the order of `splats`. Values beyond what the format can hold are clamped to it."""
    splats = canonical(splats)
    contracted = contract((splats.means - splats.means.new_tensor(grid.centre)) / grid.radius)
    means = ((contracted - contracted.new_tensor(grid.origin)) / grid.mean_step).round().clamp(0, 2**MAX_DEPTH - 1)
    scales = (splats.scales / grid.scale_step).round().clamp(-_MOST, _MOST).long()
    mrp = splats.quats[:, 1:] / (1 + splats.quats[:, :1]) / grid.quat_step
    unit = 2 ** grid.quat_skips(scales)[:, None]
    low, high = grid.alphas[0], grid.alphas[-1]
    levels = ((splats.opacities.sigmoid().clamp(low, high) - low) / (high - low) * (grid.alpha_levels - 1)).round()
    sh = (_rgb_to_ycocg(splats.sh) / _sh_steps(splats.sh, grid)).round().clamp(-_MOST, _MOST)
    return Quantized(means.long(), scales, ((mrp / unit).round() * unit).long(), levels.long(), sh.long())


def dequantize(quantized: Quantized, grid: Grid) -> Splats:
    """The gaussians that the integers stand for (float32, unit quaternions)."""
    contracted = quantized.means.float() * grid.mean_step
    contracted = contracted + contracted.new_tensor(grid.origin)
    means = expand(contracted, 2 - grid.mean_step / 2) * grid.radius + contracted.new_tensor(grid.centre)
    mrp = quantized.quats.float() * grid.quat_step
    square = squared_norm(mrp)[:, None]
    quats = torch.cat([1 - square, 2 * mrp], dim=1) / (1 + square)
    logits = means.new_tensor([math.log(alpha / (1 - alpha)) for alpha in grid.alphas])
    sh = quantized.sh.float()
    sh = _ycocg_to_rgb(sh * _sh_steps(sh, grid))
    return Splats(means, quantized.scales.float() * grid.scale_step, quats, logits[quantized.opacities], sh)


def fake_quantize(splats: Splats, bits: Bits, grid: Grid | None = None) -> Splats:
    """What `decode(encode(splats, bits))` gives, in the order of `splats`, with gradients passed straight through.

    The axes of a gaussian may come back permuted (longest first) and its quaternion changed to match: the same
    ellipsoid. Pass the `grid` of an earlier step while optimising, so that it does not move under the splats.
    """
    grid = grid or Grid.fit(splats, bits)
    splats = canonical(splats)
    with torch.no_grad():
        decoded = dequantize(quantize(splats, grid), grid)
    # x - x.detach() is zero with gradient one
    pairs = ((getattr(splats, f.name), getattr(decoded, f.name)) for f in fields(splats))
    return Splats(*(value + (x - x.detach()) for x, value in pairs))


def _rgb_to_ycocg(sh: Tensor) -> Tensor:
    # [N, K, 3]; the first coefficient becomes the colour seen at degree 0, from black 0 to white 1
    r, g, b = torch.cat([0.5 + SH_C0 * sh[:, :1], sh[:, 1:]], dim=1).unbind(dim=-1)
    return torch.stack([r / 4 + g / 2 + b / 4, (r - b) / 2, g / 2 - r / 4 - b / 4], dim=-1)


def _ycocg_to_rgb(sh: Tensor) -> Tensor:
    y, co, cg = sh.unbind(dim=-1)
    rgb = torch.stack([y - cg + co, y + cg, y - cg - co], dim=-1)
    return torch.cat([(rgb[:, :1] - 0.5) / SH_C0, rgb[:, 1:]], dim=1)


def _sh_steps(sh: Tensor, grid: Grid) -> Tensor:
    # [K, 3]: the step of each coefficient and channel
    first = sh.new_tensor([grid.luma_step, grid.chroma_step, grid.chroma_step])
    rest = sh.new_tensor([grid.sh_step, 2 * grid.sh_step, 2 * grid.sh_step])
    return torch.stack([first] + [rest] * (sh.shape[1] - 1))
