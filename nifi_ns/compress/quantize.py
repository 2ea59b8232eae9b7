"""Splats <-> integers: the lossy half of the codec, in torch, the same on every device.

What is quantised, and how:

- **means**: contracted as in mip-NeRF 360 (Barron et al. 2022, eq. 10), which keeps the middle of the scene as it is
  and folds everything outside into a shell, so that a step is about one size in the pictures; then a cubic grid.
- **scales**: natural logarithms, uniform, axes sorted from longest to shortest.
- **quats**: with the axes sorted, a rotation counts modulo half turns about them, so w can always be made the largest
  component; then modified Rodrigues parameters v / (1 + w), whose grid is nearly uniform in angle.
- **opacities**: uniform in alpha.
- **colours**: YCoCg of each SH coefficient, uniform, with coarser chroma.

Every decoded value is made of single IEEE additions, products, quotients and square roots, or looked up, so that two
machines decode the same floats.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nifi_ns.errors import NifiError
from nifi_ns.splats import SH_C0, Splats

MAX_SYMBOLS = 1 << 16
"""Largest alphabet of a quantised channel."""
MAX_DEPTH = 20
"""Largest number of bits of a quantised coordinate."""

_MRP_RANGE = 2 * math.tan(math.pi / 8)  # width of v / (1 + w) where w is the largest component
_SCALE_RANGE = 10.0  # nats of log-scale that `Bits.scales` divides
_ALPHA_MIN, _ALPHA_MAX = 1 / 255, 0.999  # below it a gaussian is not drawn; above it logits grow for nothing


@dataclass(frozen=True)
class Bits:
    """How finely each attribute is quantised; fractions are allowed. The entropy coder spends fewer bits than these."""

    means: float
    """Position: 2^means steps across the contracted scene."""
    scales: float
    """Log-scale: 2^scales steps over 10 nats."""
    quats: float
    """Rotation: 2^quats steps over the range of a modified Rodrigues parameter."""
    opacities: float
    """Opacity: 2^opacities levels of alpha."""
    luma: float
    """Brightness: 2^luma steps from black to white."""
    chroma: float
    """Colour difference: 2^chroma steps over its range."""
    sh: float
    """View-dependent colour: 2^sh steps over one unit of an SH coefficient of degree 1 or more."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, most = getattr(self, field.name), 16 if field.name == "means" else 12
            if not 1 <= value <= most:
                raise NifiError(f"bits of {field.name}: {value} is outside 1 to {most}")


PRESETS = {
    "coarse": Bits(means=10, scales=4.75, quats=4, opacities=3.25, luma=4.25, chroma=4, sh=3),
    "mid": Bits(means=11.5, scales=5.75, quats=5, opacities=4.25, luma=5.25, chroma=5, sh=4),
    "fine": Bits(means=14, scales=7.25, quats=6.5, opacities=6, luma=6.75, chroma=6.5, sh=6),
}
"""Named choices of `Bits`, from smallest to best."""


@dataclass(frozen=True)
class Grid:
    """Everything needed to turn integers back into attributes: the steps, and the frame of the positions.

    Python floats that are exactly representable in float32, as they are stored.
    """

    centre: tuple[float, float, float]
    """Middle of the scene, in its own units."""
    radius: float
    """Distance from the middle up to which space is not contracted."""
    origin: tuple[float, float, float]
    """Contracted position of the corner cell's centre."""
    mean_step: float
    scale_step: float
    quat_step: float
    alpha_levels: int
    luma_step: float
    chroma_step: float
    sh_step: float

    @classmethod
    def fit(cls, splats: Splats, bits: Bits) -> "Grid":
        """The grid of `bits` for these gaussians: only the frame of the positions depends on them.

        Raises:
            NifiError: if there are no gaussians, or a value is not finite.
        """
        if len(splats) == 0:
            raise NifiError("the scene is empty: there are no gaussians to compress")
        for field in fields(splats):
            if not torch.isfinite(getattr(splats, field.name)).all():
                raise NifiError(
                    f"the scene's {field.name} hold values that are not finite: train it again or filter it"
                )
        means = splats.means.detach().float()
        centre = means.median(dim=0).values
        distances = (means - centre).norm(dim=1)
        radius = max(2 * float(distances.median()), 1e-6)
        contracted = _contract((means - centre) / radius)
        low, high = contracted.amin(dim=0), contracted.amax(dim=0)
        span = max(float((high - low).max()), 1e-6)
        return cls(
            centre=_float32(*centre.tolist()),
            radius=_float32(radius)[0],
            origin=_float32(*low.tolist()),
            mean_step=_float32(span * 2.0**-bits.means)[0],
            scale_step=_float32(_SCALE_RANGE * 2.0**-bits.scales)[0],
            quat_step=_float32(_MRP_RANGE * 2.0**-bits.quats)[0],
            alpha_levels=max(2, round(2.0**bits.opacities)),
            luma_step=_float32(2.0**-bits.luma)[0],
            chroma_step=_float32(2.0**-bits.chroma)[0],
            sh_step=_float32(2.0**-bits.sh)[0],
        )


@dataclass
class Quantized:
    """N gaussians as integers (int64 tensors)."""

    means: Tensor
    """[N, 3] grid coordinates, 0 to 2^20 - 1."""
    scales: Tensor
    """[N, 3] log-scale steps, not increasing along the last axis."""
    quats: Tensor
    """[N, 3] modified Rodrigues steps."""
    opacities: Tensor
    """[N] alpha levels, from 0."""
    sh: Tensor
    """[N, (degree + 1)^2, 3] YCoCg steps."""

    def to(self, device: torch.device | str) -> "Quantized":
        """The same integers on `device`."""
        return Quantized(*(getattr(self, f.name).to(device) for f in fields(self)))

    def __getitem__(self, index: Tensor) -> "Quantized":
        """The gaussians selected by `index`."""
        return Quantized(*(getattr(self, f.name)[index] for f in fields(self)))


def quantize(splats: Splats, grid: Grid) -> Quantized:
    """Round to the grid, in the order of `splats`. Values beyond what the format can hold are clamped to it."""
    splats = canonical(splats)
    contracted = _contract((splats.means - splats.means.new_tensor(grid.centre)) / grid.radius)
    means = ((contracted - contracted.new_tensor(grid.origin)) / grid.mean_step).round()
    scales = (splats.scales / grid.scale_step).round()
    quats = splats.quats
    mrp = (quats[:, 1:] / (1 + quats[:, :1]) / grid.quat_step).round()
    alphas = torch.sigmoid(splats.opacities)
    levels = ((alphas - _ALPHA_MIN) / (_ALPHA_MAX - _ALPHA_MIN) * (grid.alpha_levels - 1)).round()
    sh = (_rgb_to_ycocg(splats.sh) / _sh_steps(splats.sh, grid)).round()
    half = MAX_SYMBOLS // 2 - 1
    return Quantized(
        means.clamp(0, 2**MAX_DEPTH - 1).long(),
        scales.clamp(-half, half).long(),
        mrp.clamp(-half, half).long(),
        levels.clamp(0, grid.alpha_levels - 1).long(),
        sh.clamp(-half, half).long(),
    )


def dequantize(quantized: Quantized, grid: Grid) -> Splats:
    """The gaussians that the integers stand for (float32, unit quaternions)."""
    contracted = quantized.means.float() * grid.mean_step
    contracted = contracted + contracted.new_tensor(grid.origin)
    means = _expand(contracted, 2 - grid.mean_step / 2) * grid.radius + contracted.new_tensor(grid.centre)
    mrp = quantized.quats.float() * grid.quat_step
    square = _square(mrp)[:, None]
    quats = torch.cat([1 - square, 2 * mrp], dim=1) / (1 + square)
    logits = [
        _logit(_ALPHA_MIN + i / (grid.alpha_levels - 1) * (_ALPHA_MAX - _ALPHA_MIN)) for i in range(grid.alpha_levels)
    ]
    sh = quantized.sh.float()
    sh = _ycocg_to_rgb(sh * _sh_steps(sh, grid))
    return Splats(
        means, quantized.scales.float() * grid.scale_step, quats, mrp.new_tensor(logits)[quantized.opacities], sh
    )


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


def canonical(splats: Splats) -> Splats:
    """The same ellipsoids with axes sorted from longest to shortest and unit quaternions whose w is largest.

    Differentiable, and unchanged when applied again.
    """
    scales, order = splats.scales.sort(dim=1, descending=True, stable=True)
    quats = torch.nn.functional.normalize(splats.quats, dim=1)
    quats = _permute_axes(quats, order)
    # a half turn about an axis changes no ellipsoid and brings any component to the place of w
    w, x, y, z = quats.unbind(dim=1)
    turns = torch.stack(
        [quats, torch.stack([-x, w, z, -y], 1), torch.stack([-y, -z, w, x], 1), torch.stack([-z, y, -x, w], 1)], 1
    )
    largest = quats.detach().abs().argmax(dim=1)
    quats = turns[torch.arange(len(quats), device=quats.device), largest]
    quats = torch.where(quats[:, :1] < 0, -quats, quats)
    return Splats(splats.means, scales, quats, splats.opacities, splats.sh)


_H = math.sqrt(0.5)
_PERMUTATIONS = torch.tensor(
    # rotations that bring axis order[j] to place j, at index 2 * order[0] + (order[1] > order[2])
    [[1, 0, 0, 0], [_H, _H, 0, 0], [_H, 0, 0, _H], [0.5, 0.5, 0.5, 0.5], [0.5, -0.5, -0.5, -0.5], [_H, 0, _H, 0]]
)


def _permute_axes(quats: Tensor, order: Tensor) -> Tensor:
    # [N, 4], [N, 3] -> [N, 4]: rotations with their columns reordered (one is negated where the order is odd)
    by = _PERMUTATIONS.to(quats)[2 * order[:, 0] + (order[:, 1] > order[:, 2])]
    (w, x, y, z), (a, b, c, d) = quats.unbind(1), by.unbind(1)
    return torch.stack(
        [
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ],
        dim=1,
    )


def _contract(points: Tensor) -> Tensor:
    # [N, 3] -> [N, 3] in the ball of radius 2; the unit ball stays as it is
    norm = _square(points).sqrt().clamp_min(1)[:, None]
    return torch.where(norm > 1, (2 - 1 / norm) / norm * points, points)


def _expand(points: Tensor, most: float) -> Tensor:
    # the inverse of _contract, for norms up to `most` < 2; what lies beyond is taken as if it lay there
    norm = _square(points).sqrt().clamp_min(1)[:, None]
    return torch.where(norm > 1, 1 / (2 - norm.clamp_max(most)) / norm * points, points)


def _square(vectors: Tensor) -> Tensor:
    # [N, 3] -> [N], summed in a fixed order
    x, y, z = vectors.unbind(dim=1)
    return x * x + y * y + z * z


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


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _float32(*values: float) -> tuple:
    return tuple(torch.tensor(values, dtype=torch.float32).tolist())
