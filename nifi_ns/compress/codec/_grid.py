"""The quantisers of all attributes, and the frame of a scene's positions."""

import math
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from functools import lru_cache

import torch
from torch import Tensor

from nifi_ns.errors import NifiError
from nifi_ns.splats import Splats

MRP_RANGE = 2 * math.tan(math.pi / 8)
"""Width of the range of a modified Rodrigues parameter v / (1 + w) where w is the largest component."""
SCALE_RANGE = 10.0
"""Nats of log-scale that `Bits.scales` divides."""
MAX_SKIP = 7
"""Most low bits that may be dropped from a value, and the precision class of the least important gaussians."""
MAX_LEVELS = 1 << 12
"""Most quantisation levels of alpha, and of an axis' length relative to the longest."""
UNIT = 256
"""Precisions are compared in integers of 1 / UNIT bit."""

HEADROOM = 3
"""Bits that the finest precision class has above the average gaussian, which makes it the class of the average."""

# How many bits fewer than by its precision class an attribute needs, per octave of the longest axis and by the ratio of
# the shortest axis to it. Fitted to half the log2 of the Gauss-Newton Hessian's diagonal over the renders of trained
# scenes: large gaussians are less sensitive to a shift and more to rotation and shape, round ones not to rotation.
_LESS_BY_SIZE = {"means": 0.7, "ratios": -0.3, "quats": -0.35}
_LESS_BY_ROUNDNESS = {"quats": 3.0}
_OCTAVES = 1.4426950408889634  # in a nat
SIZED = tuple(_LESS_BY_SIZE)
"""Attributes whose bits depend on more than the precision class."""
# steps beyond which damage grows faster than with their square: nats, of the longest axis, of all levels
_COARSEST = {"scales": 0.5, "ratios": 0.25, "opacities": 0.125}

# fainter gaussians are invisible; beyond the upper limit logits grow without effect
_ALPHA_MIN, _ALPHA_MAX = Decimal("0.005"), Decimal("0.999")

_MOST_BITS = {"means": 16, "ratios": 9, "opacities": 9}


@dataclass(frozen=True)
class Bits:
    """Bits of the attributes of an average gaussian before entropy coding; fractions are allowed.

    More important gaussians have up to `HEADROOM` bits more, others fewer.
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
                raise NifiError(f"bits of {field.name}: {value} is outside 1 to {most}")


PRESETS = {
    "coarse": Bits(means=12, scales=6.5, ratios=4, quats=4.5, opacities=5, luma=5.5, chroma=5.5, sh=4.25),
    "mid": Bits(means=13, scales=7.5, ratios=5, quats=5.5, opacities=6, luma=6.5, chroma=6.5, sh=5.25),
    "fine": Bits(means=14.5, scales=9, ratios=6.5, quats=7, opacities=7.5, luma=8, chroma=8, sh=6.75),
}
"""Named choices of `Bits`, from smallest to best."""


@dataclass(frozen=True)
class Grid:
    """The quantisers: all that turns integers into attributes. Its floats are exact in float32, as they are stored."""

    centre: tuple[float, float, float]
    """Centre of the scene, in scene units."""
    radius: float
    """Distance from the centre up to which space is not contracted."""
    origin: tuple[float, float, float]
    """Contracted position of the lowest corner."""
    mean_step: float
    scale_step: float
    quat_step: float
    luma_step: float
    chroma_step: float
    sh_step: float
    ratio_levels: int
    """Steps of an axis' length up to the longest."""
    alpha_levels: int
    offsets: tuple[int, ...]
    """In 1 / UNIT bit, for each of `SIZED`: make the average gaussian have the bits asked for."""

    @classmethod
    def fit(cls, splats: Splats, bits: Bits) -> "Grid":
        """Return the grid of `bits` for these gaussians.

        Positions are contracted around the median first, so that a gaussian however far away makes the steps at most
        about 2.5 times coarser.

        Raises:
            NifiError: if there are no gaussians, or some that cannot be drawn.
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
            longest: [N] int64, the quantised logarithm of the longest axis; needed for attributes in `SIZED`.
            shortest: [N] int64, the quantised length of the shortest axis; needed for quats.
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
        # [N] int64, in 1 / UNIT bit, up to a constant
        less = round(UNIT * _OCTAVES * _LESS_BY_SIZE[name] * self.scale_step) * longest
        if shortest is not None and name in _LESS_BY_ROUNDNESS:
            less = less + round(UNIT * _LESS_BY_ROUNDNESS[name]) * shortest // self.ratio_levels
        return less

    @property
    def logits(self) -> tuple[float, ...]:
        """The opacity logit of every level, from the most opaque."""
        return _logits(self.alpha_levels)

    def alpha_level(self, opacities: Tensor) -> Tensor:
        """Return the level of opacity logits, [N] -> [N], before rounding."""
        high, low = (float(alpha.ln()) for alpha in (_ALPHA_MAX, _ALPHA_MIN))
        return (torch.nn.functional.logsigmoid(opacities) - high) / (low - high) * self.alpha_levels

    @property
    def log_ratios(self) -> tuple[float, ...]:
        """Logarithms of an axis' length relative to the longest, by twice the length in steps."""
        return _log_ratios(self.ratio_levels)


# in decimals, which round the same everywhere, where the processor's logarithm may not


@lru_cache(maxsize=8)
def _logits(levels: int) -> tuple[float, ...]:
    high, low = _ALPHA_MAX.ln(), _ALPHA_MIN.ln()
    alphas = [(high + (low - high) * level / levels).exp() for level in range(levels)]
    return tuple(float((alpha / (1 - alpha)).ln()) for alpha in alphas)


@lru_cache(maxsize=8)
def _log_ratios(levels: int) -> tuple[float, ...]:
    return tuple(float((Decimal(max(twice, 1)) / (2 * levels)).ln()) for twice in range(2 * levels + 1))


def precision_classes(sensitivity: Tensor) -> Tensor:
    """Return the precision class of gaussians: the optimal allocation damages the images equally by each of them.

    Args:
        sensitivity: [N] squared derivatives of the images, see `Importance.position_sensitivity`.

    Returns:
        [N] int64, from 0, the finest, to MAX_SKIP. The next class has a quarter of the sensitivity; gaussians whose
        logarithm of it is the average are in class HEADROOM.
    """
    seen = sensitivity[sensitivity > 0].sort().values
    if len(seen) == 0:
        return torch.full_like(sensitivity, HEADROOM, dtype=torch.long)
    precision = 0.5 * sensitivity.clamp_min(float(seen[len(seen) // 50])).log2()
    return (HEADROOM - (precision - precision.mean())).round().clamp(0, MAX_SKIP).long()


def contract(points: Tensor) -> Tensor:
    """Contract space into the ball of radius 2, [N, 3] -> [N, 3]; the unit ball stays as it is."""
    norm = squared_norm(points).sqrt().clamp_min(1)[:, None]
    return torch.where(norm > 1, (2 - 1 / norm) / norm * points, points)


def expand(points: Tensor, most: float) -> Tensor:
    """Invert `contract` for norms up to `most` < 2; larger ones are clamped to it."""
    norm = squared_norm(points).sqrt().clamp_min(1)[:, None]
    return torch.where(norm > 1, 1 / (2 - norm.clamp_max(most)) / norm * points, points)


def squared_norm(vectors: Tensor) -> Tensor:
    """Return squared norms, [N, 3] -> [N], summed in a fixed order so that all machines agree."""
    x, y, z = vectors.unbind(dim=1)
    return x * x + y * y + z * z


def _float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()
