"""Splats to integers and back: the lossy half of the codec, in torch, with the same result on every device.

How attributes are quantised:

- **means**: on a cubic grid, after contraction as in mip-NeRF 360 (Barron et al. 2022, eq. 10). It keeps the middle of
  the scene and folds everything outside into a shell, so that a step has about the same size everywhere in renders.
- **scales**: axes are sorted from longest to shortest. The natural logarithm of the longest is quantised uniformly, and
  so are the lengths of the others relative to it, because small differences between thin gaussians are invisible.
- **quats**: with sorted axes, half turns about an axis do not change the ellipsoid, so that w can always be the largest
  component. Modified Rodrigues parameters v / (1 + w) then have a grid that is nearly uniform in angle.
- **opacities**: uniform in the logarithm of alpha.
- **sh**: YCoCg of each SH coefficient, uniform, with coarser chroma.

Less important gaussians have grids coarser by powers of two: the number of dropped low bits of a value follows, in
integers, from the gaussian's precision class and quantised size (`Grid.skips`). Decoding uses only table lookups and
single IEEE additions, products, quotients and square roots, so that all machines decode the same values.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nifi_ns.compress.codec._grid import HEADROOM, MAX_SKIP, Bits, Grid, contract, expand, squared_norm
from nifi_ns.compress.codec._rotations import canonical
from nifi_ns.splats import SH_C0, Splats

MAX_SYMBOLS = 1 << 16
"""Maximum number of symbols of a quantised channel."""
MAX_DEPTH = 20
"""Maximum number of bits of a quantised coordinate."""
_MOST = (MAX_SYMBOLS // 2 - 1) >> MAX_SKIP << MAX_SKIP


@dataclass
class Quantized:
    """N gaussians as integers (int64 tensors)."""

    precision: Tensor
    """[N] precision classes from 0, the most important gaussians, to MAX_SKIP; about the number of dropped low bits."""
    means: Tensor
    """[N, 3] grid coordinates from 0 to 2^20 - 1: the lowest corner of a cell of 2^skip."""
    scales: Tensor
    """[N] logarithm of the longest axis in steps."""
    ratios: Tensor
    """[N, 2] lengths of the middle and shortest axis in steps, from 0: the lower end of a range of 2^skip."""
    quats: Tensor
    """[N, 3] modified Rodrigues parameters in steps."""
    opacities: Tensor
    """[N] quantisation levels, 0 is the most opaque."""
    sh: Tensor
    """[N, (degree + 1)^2, 3] YCoCg in steps."""

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return math.isqrt(self.sh.shape[1]) - 1

    def to(self, device: torch.device | str) -> "Quantized":
        """Move to `device`."""
        return Quantized(*(getattr(self, f.name).to(device) for f in fields(self)))

    def __getitem__(self, index: Tensor) -> "Quantized":
        """Select gaussians by `index`, [M] integers or [N] booleans."""
        return Quantized(*(getattr(self, f.name)[index] for f in fields(self)))


def quantize(splats: Splats, grid: Grid, precision: Tensor | None = None) -> Quantized:
    """Quantise `splats`, in their order. Values that the format cannot hold are clamped.

    Args:
        splats: the gaussians.
        grid: the quantisers.
        precision: [N] int64, see `precision_classes`; the average class for all by default.
    """
    splats = canonical(splats)
    precision = torch.full_like(splats.opacities, HEADROOM, dtype=torch.long) if precision is None else precision
    scales = _rounded(splats.scales[:, 0] / grid.scale_step, grid.skips("scales", precision))
    lengths = (splats.scales[:, 1:] - splats.scales[:, :1]).exp() * grid.ratio_levels
    ratios = _cells(lengths, grid.skips("ratios", precision, scales)[:, None], grid.ratio_levels - 1)
    contracted = contract((splats.means - splats.means.new_tensor(grid.centre)) / grid.radius)
    corners = (contracted - contracted.new_tensor(grid.origin)) / grid.mean_step
    means = _cells(corners, grid.skips("means", precision, scales)[:, None], 2**MAX_DEPTH - 1)
    mrp = splats.quats[:, 1:] / (1 + splats.quats[:, :1]) / grid.quat_step
    quats = _rounded(mrp, grid.skips("quats", precision, scales, ratios[:, 1])[:, None])
    level, skip = grid.alpha_level(splats.opacities), grid.skips("opacities", precision)
    opacities = torch.minimum(_rounded(level, skip), (grid.alpha_levels - 1) >> skip << skip).clamp_min(0)
    sh = _rounded(_rgb_to_ycocg(splats.sh) / _sh_steps(splats.sh, grid), grid.skips("sh", precision)[:, None, None])
    return Quantized(precision, means, scales, ratios, quats, opacities, sh)


def dequantize(quantized: Quantized, grid: Grid) -> Splats:
    """Return the gaussians that `quantized` represents, in float32 with unit quaternions."""
    precision = quantized.precision
    middles = _middles(quantized.means, grid.skips("means", precision, quantized.scales)[:, None])
    contracted = middles.float() * (grid.mean_step / 2)
    contracted = contracted + contracted.new_tensor(grid.origin)
    means = expand(contracted, 2 - grid.mean_step / 2) * grid.radius + contracted.new_tensor(grid.centre)
    longest = quantized.scales.float()[:, None] * grid.scale_step
    middles = _middles(quantized.ratios, grid.skips("ratios", precision, quantized.scales)[:, None])
    others = longest + longest.new_tensor(grid.log_ratios)[middles.clamp_max(2 * grid.ratio_levels)]
    scales = torch.cat([longest, others], dim=1)
    mrp = quantized.quats.float() * grid.quat_step
    square = squared_norm(mrp)[:, None]
    quats = torch.cat([1 - square, 2 * mrp], dim=1) / (1 + square)
    sh = quantized.sh.float()
    sh = _ycocg_to_rgb(sh * _sh_steps(sh, grid))
    return Splats(means, scales, quats, means.new_tensor(grid.logits)[quantized.opacities], sh)


def _rounded(values: Tensor, skips: Tensor) -> Tensor:
    # to the nearest multiple of 2^skip
    units = 2**skips
    return (values.clamp(-_MOST, _MOST) / units).round().long() * units


def _cells(values: Tensor, skips: Tensor, most: int) -> Tensor:
    # down to a multiple of 2^skip: the lower end of a range that decodes to its middle
    return values.long().clamp(0, most) >> skips << skips


def _middles(cells: Tensor, skips: Tensor) -> Tensor:
    # twice the middle of a range of 2^skip, to stay in integers
    return 2 * cells + 2**skips


def fake_quantize(splats: Splats, grid: Grid | Bits, precision: Tensor | None = None) -> Splats:
    """Return `decode(encode(splats, grid, precision))`, in the order of `splats`, with straight-through gradients.

    Axes are sorted (longest first) and quaternions changed to match, which gives the same ellipsoids. When optimising,
    pass a `Grid` that was fitted once, so that it stays fixed.
    """
    grid = Grid.fit(splats, grid) if isinstance(grid, Bits) else grid
    splats = canonical(splats)
    with torch.no_grad():
        decoded = dequantize(quantize(splats, grid, precision), grid)
    # x - x.detach() is zero with gradient one
    pairs = ((getattr(splats, f.name), getattr(decoded, f.name)) for f in fields(splats))
    return Splats(*(value + (x - x.detach()) for x, value in pairs))


def _rgb_to_ycocg(sh: Tensor) -> Tensor:
    # [N, K, 3]; the first coefficient becomes the colour at degree 0, from -0.5 (black) to 0.5 (white)
    r, g, b = torch.cat([SH_C0 * sh[:, :1], sh[:, 1:]], dim=1).unbind(dim=-1)
    return torch.stack([r / 4 + g / 2 + b / 4, (r - b) / 2, g / 2 - r / 4 - b / 4], dim=-1)


def _ycocg_to_rgb(sh: Tensor) -> Tensor:
    y, co, cg = sh.unbind(dim=-1)
    rgb = torch.stack([y - cg + co, y + cg, y - cg - co], dim=-1)
    return torch.cat([rgb[:, :1] / SH_C0, rgb[:, 1:]], dim=1)


def _sh_steps(sh: Tensor, grid: Grid) -> Tensor:
    # [K, 3]: the step of each coefficient and channel
    first = sh.new_tensor([grid.luma_step, grid.chroma_step, grid.chroma_step])
    rest = sh.new_tensor([grid.sh_step, 2 * grid.sh_step, 2 * grid.sh_step])
    return torch.stack([first] + [rest] * (sh.shape[1] - 1))
