"""The quantisers of all attributes, and the coordinate frame of positions."""

import math
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from functools import lru_cache

import torch
from torch import Tensor

from nifi_ns.errors import NifiError
from nifi_ns.splats import Splats

MRP_RANGE = 2 * math.tan(math.pi / 8)
"""Width of the range of a modified Rodrigues parameter v / (1 + w) if w is the largest component."""
SCALE_RANGE = 10.0
"""Nats of log-scale that 2^`Bits.scales` steps cover."""
MAX_SKIP = 7
"""Maximum number of low bits dropped from a value, and the precision class of the least important gaussians."""
MAX_LEVELS = 1 << 12
"""Maximum number of quantisation levels of alpha, and of an axis' length relative to the longest."""
UNIT = 256
"""Precisions are integers in 1 / UNIT bit."""

HEADROOM = 3
"""Bits that the finest precision class has more than the average gaussian; therefore also the class of the average."""

# How many bits fewer an attribute needs than its precision class gives: per octave of the longest axis, and per unit of
# the ratio of the shortest axis to the longest. Fitted to half the log2 of the Gauss-Newton Hessian's diagonal over the
# renders of trained scenes. Large gaussians are less sensitive to a shift and more to rotation and shape; round ones
# are not sensitive to rotation.
_LESS_BY_SIZE = {"means": 0.7, "ratios": -0.3, "quats": -0.35}
_LESS_BY_ROUNDNESS = {"quats": 3.0}
_OCTAVES = 1.4426950408889634  # per nat
SIZED = tuple(_LESS_BY_SIZE)
"""Attributes whose bits also depend on the size of the gaussian."""
# the largest useful steps: beyond, damage grows faster than with their square; in nats, longest axes, all levels
_COARSEST = {"scales": 0.5, "ratios": 0.25, "opacities": 0.125}

# gaussians below the lower limit are invisible; above the upper limit logits grow without effect
_ALPHA_MIN, _ALPHA_MAX = Decimal("0.005"), Decimal("0.999")

_MOST_BITS = {"means": 16, "ratios": 9, "opacities": 9}


@dataclass(frozen=True)
class Bits:
    """Bits of each attribute of an average gaussian before entropy coding; fractions are allowed.

    More important gaussians get up to `HEADROOM` bits more, less important ones fewer.
    """

    means: float
    """Position: 2^means steps across the contracted scene."""
    scales: float
    """Logarithm of the longest axis: 2^scales steps over 10 nats."""
    ratios: float
    """Lengths of the other axes: 2^ratios steps up to the longest."""
    quats: float
    """Rotation: 2^quats steps over the range of a modified Rodrigues parameter."""
    opacities: float
    """Opacity: 2^opacities levels of the logarithm of alpha."""
    luma: float
    """Brightness: 2^luma steps from black to white."""
    chroma: float
    """Colour difference: 2^chroma steps over its range."""
    sh: float
    """View-dependent colour: 2^sh steps over one unit of an SH coefficient of degree 1 or more."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, most = getattr(self, field.name), _MOST_BITS.get(field.name, 12)
            if not 1 <= value <= most:
                raise NifiError(f"bits: {field.name} is {value}, expected 1 to {most}")


BITS = {
    "coarse": Bits(means=12, scales=6.5, ratios=4, quats=4.5, opacities=5, luma=5.5, chroma=5.5, sh=4.25),
    "mid": Bits(means=13, scales=7.5, ratios=5, quats=5.5, opacities=6, luma=6.5, chroma=6.5, sh=5.25),
    "fine": Bits(means=14.5, scales=9, ratios=6.5, quats=7, opacities=7.5, luma=8, chroma=8, sh=6.75),
}
"""`Bits` by the name that `--bits` takes, from the smallest file to the best quality."""


@dataclass(frozen=True)
class Grid:
    """The quantisers, which map attributes to integers and back. All floats are exact in float32, as in the file."""

    centre: tuple[float, float, float]
    """Centre of the scene, in scene units."""
    radius: float
    """Distance from the centre, in scene units, up to which space is not contracted."""
    origin: tuple[float, float, float]
    """Lowest corner of the scene, in contracted space."""
    mean_step: float
    scale_step: float
    quat_step: float
    luma_step: float
    chroma_step: float
    sh_step: float
    ratio_levels: int
    """Number of steps from zero to the length of the longest axis."""
    alpha_levels: int
    offsets: tuple[int, ...]
    """For each of `SIZED`, in 1 / UNIT bit: the correction that gives the average gaussian the requested bits."""

    @classmethod
    def fit(cls, splats: Splats, bits: Bits) -> "Grid":
        """Return the grid of `bits` for the given gaussians.

        Space is contracted around the median position, so that distant gaussians, no matter how far away, make steps
        at most about 2.5 times coarser.

        Raises:
            NifiError: if there are no gaussians, or gaussians that cannot be drawn.
        """
        if len(splats) == 0:
            raise NifiError("the scene is empty: there are no gaussians to compress")
        if problem := splats.problem():
            raise NifiError(f"cannot compress the scene: {problem}")
        means = splats.means.detach().float()
        centre = means.median(dim=0).values
        radius = max(2 * float((means - centre).norm(dim=1).median()), 1e-6)
        contracted = contract((means - centre) / radius)
        low, high = contracted.amin(dim=0), contracted.amax(dim=0)
        span = max(float((high - low).max()), 1e-6)
        x, y, z = map(_float32, centre.tolist())
        corner_x, corner_y, corner_z = map(_float32, low.tolist())
        grid = cls(
            centre=(x, y, z),
            radius=_float32(radius),
            origin=(corner_x, corner_y, corner_z),
            mean_step=_float32(span * 2.0 ** -(bits.means + HEADROOM)),
            scale_step=_float32(SCALE_RANGE * 2.0 ** -(bits.scales + HEADROOM)),
            quat_step=_float32(MRP_RANGE * 2.0 ** -(bits.quats + HEADROOM)),
            luma_step=_float32(2.0 ** -(bits.luma + HEADROOM)),
            chroma_step=_float32(2.0 ** -(bits.chroma + HEADROOM)),
            sh_step=_float32(2.0 ** -(bits.sh + HEADROOM)),
            ratio_levels=round(2.0 ** (bits.ratios + HEADROOM)),
            alpha_levels=round(2.0 ** (bits.opacities + HEADROOM)),
            offsets=(0,) * len(SIZED),
        )
        scales = splats.scales.detach().float().sort(dim=1, descending=True).values
        longest = (scales[:, 0] / grid.scale_step).round().long()
        shortest = ((scales[:, 2] - scales[:, 0]).exp() * grid.ratio_levels).long()
        offsets = (-round(float(grid._less(name, longest, shortest).double().mean())) for name in SIZED)
        return replace(grid, offsets=tuple(offsets))

    def skips(
        self, name: str, precision: Tensor, longest: Tensor | None = None, shortest: Tensor | None = None
    ) -> Tensor:
        """Return how many low bits of an attribute are dropped, [N] int64 from 0 to MAX_SKIP.

        Args:
            name: the attribute, as in `Bits`.
            precision: [N] int64, see `precision_classes`.
            longest: [N] int64, the quantised logarithm of the longest axis; required for attributes in `SIZED`.
            shortest: [N] int64, the quantised length of the shortest axis; required for quats.
        """
        less = UNIT * precision
        if name in SIZED:
            assert longest is not None
            less = less + self.offsets[SIZED.index(name)] + self._less(name, longest, shortest)
        return ((less + UNIT // 2) // UNIT).clamp(0, self._most(name))

    def _most(self, name: str) -> int:
        steps = {"scales": self.scale_step, "ratios": 1 / self.ratio_levels, "opacities": 1 / self.alpha_levels}
        if name not in steps:
            return MAX_SKIP
        return sum(steps[name] * 2.0**skip <= _COARSEST[name] for skip in range(1, MAX_SKIP + 1))

    def _less(self, name: str, longest: Tensor, shortest: Tensor | None) -> Tensor:
        # [N] int64: bits to save, in 1 / UNIT bit, up to a constant
        less = round(UNIT * _OCTAVES * _LESS_BY_SIZE[name] * self.scale_step) * longest
        if shortest is not None and name in _LESS_BY_ROUNDNESS:
            less = less + round(UNIT * _LESS_BY_ROUNDNESS[name]) * shortest // self.ratio_levels
        return less

    @property
    def logits(self) -> tuple[float, ...]:
        """The opacity logit of each level, from the most opaque."""
        return _logits(self.alpha_levels)

    def alpha_level(self, opacities: Tensor) -> Tensor:
        """Return the levels of opacity logits, [N] -> [N], before rounding."""
        high, low = (float(alpha.ln()) for alpha in (_ALPHA_MAX, _ALPHA_MIN))
        return (torch.nn.functional.logsigmoid(opacities) - high) / (low - high) * self.alpha_levels

    @property
    def log_ratios(self) -> tuple[float, ...]:
        """Logarithms of an axis' length relative to the longest, indexed by twice the length in steps."""
        return _log_ratios(self.ratio_levels)


# with Decimal, which rounds the same on all machines; the processor's logarithm may not


@lru_cache(maxsize=8)
def _logits(levels: int) -> tuple[float, ...]:
    high, low = _ALPHA_MAX.ln(), _ALPHA_MIN.ln()
    alphas = [(high + (low - high) * level / levels).exp() for level in range(levels)]
    return tuple(float((alpha / (1 - alpha)).ln()) for alpha in alphas)


@lru_cache(maxsize=8)
def _log_ratios(levels: int) -> tuple[float, ...]:
    return tuple(float((Decimal(max(twice, 1)) / (2 * levels)).ln()) for twice in range(2 * levels + 1))


def precision_classes(sensitivity: Tensor) -> Tensor:
    """Return the precision classes of gaussians, so that quantising each gaussian damages renders by the same amount.

    Args:
        sensitivity: [N] squared derivatives of renders, see `Importance.position_sensitivity`.

    Returns:
        [N] int64 from 0, the finest, to MAX_SKIP. Each class has a quarter of the sensitivity of the class before.
        Gaussians of average log-sensitivity are in class HEADROOM.
    """
    seen = sensitivity[sensitivity > 0].sort().values
    if len(seen) == 0:
        return torch.full_like(sensitivity, HEADROOM, dtype=torch.long)
    precision = 0.5 * sensitivity.clamp_min(float(seen[len(seen) // 50])).log2()
    return (HEADROOM - (precision - precision.mean())).round().clamp(0, MAX_SKIP).long()


def contract(points: Tensor) -> Tensor:
    """Contract space into the ball of radius 2, [N, 3] -> [N, 3]; the unit ball does not change."""
    norm = squared_norm(points).sqrt().clamp_min(1)[:, None]
    return torch.where(norm > 1, (2 - 1 / norm) / norm * points, points)


def expand(points: Tensor, most: float) -> Tensor:
    """Invert `contract`, [N, 3] -> [N, 3], with norms clamped to `most` < 2."""
    norm = squared_norm(points).sqrt().clamp_min(1)[:, None]
    return torch.where(norm > 1, 1 / (2 - norm.clamp_max(most)) / norm * points, points)


def squared_norm(vectors: Tensor) -> Tensor:
    """Return squared norms, [N, 3] -> [N], summed in a fixed order so that all machines get the same result."""
    x, y, z = vectors.unbind(dim=1)
    return x * x + y * y + z * z


def _float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()
