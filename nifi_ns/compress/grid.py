"""How finely each attribute is quantised, and the frame of a scene's positions."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nifi_ns.errors import NifiError
from nifi_ns.splats import Splats

MRP_RANGE = 2 * math.tan(math.pi / 8)
"""Width of the range of a modified Rodrigues parameter v / (1 + w) where w is the largest component."""
SCALE_RANGE = 10.0
"""Nats of log-scale that `Bits.scales` divides."""
MAX_SKIP = 6
"""Most low bits that a gaussian's rotation may do without."""
MAX_LEVELS = 1 << 12
"""Most levels of alpha."""
UNIT = 256
"""Precisions are compared in integers of 1 / UNIT bit."""

# Precision in bits that a rotation needs, by nat of the log-scales, longest first: half the log2 of the Gauss-Newton
# Hessian's diagonal over the renders of trained scenes, fitted. Turning a round gaussian shows little.
_QUAT_PRECISION = (1.6, -0.5, -0.57)
_QUAT_HEADROOM = 2  # bits of those that need most, above the average

_ALPHA_MIN, _ALPHA_MAX = 0.01, 0.999  # what is fainter is as good as gone; above, logits grow for nothing


@dataclass(frozen=True)
class Bits:
    """How finely each attribute is quantised; fractions are allowed. The entropy coder spends fewer bits than these."""

    means: float
    """Position: 2^means steps across the contracted scene."""
    scales: float
    """Log-scale: 2^scales steps over 10 nats."""
    quats: float
    """Rotation of a gaussian of average sensitivity: 2^quats steps over the range of a modified Rodrigues parameter."""
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
    "coarse": Bits(means=10.5, scales=5.25, quats=4.5, opacities=3.75, luma=4.75, chroma=4.5, sh=3),
    "mid": Bits(means=12, scales=6, quats=5.25, opacities=4.5, luma=5.5, chroma=5.25, sh=4),
    "fine": Bits(means=14, scales=8, quats=6.5, opacities=7, luma=7.25, chroma=7, sh=6.5),
}
"""Named choices of `Bits`, from smallest to best."""


@dataclass(frozen=True)
class Grid:
    """Everything needed to turn integers back into attributes. Its floats are exact in float32, as they are stored."""

    centre: tuple[float, float, float]
    """Middle of the scene, in its own units."""
    radius: float
    """Distance from the middle up to which space is not contracted."""
    origin: tuple[float, float, float]
    """Contracted position of the corner cell's centre."""
    mean_step: float
    scale_step: float
    quat_step: float
    """Of the rotations that need most precision."""
    luma_step: float
    chroma_step: float
    sh_step: float
    alpha_levels: int
    quat_precision: int
    """In 1 / UNIT bit: the precision from which on a rotation has all of its bits."""

    @classmethod
    def fit(cls, splats: Splats, bits: Bits) -> "Grid":
        """The grid of `bits` for these gaussians: the frame of their positions, and the average rotation's precision.

        Raises:
            NifiError: if there are no gaussians, or a value is not finite.
        """
        if len(splats) == 0:
            raise NifiError("the scene is empty: there are no gaussians to compress")
        for name in (field.name for field in fields(splats)):
            if not torch.isfinite(getattr(splats, name)).all():
                raise NifiError(f"the scene's {name} hold values that are not finite: train it again or filter it")
        means = splats.means.detach().float()
        centre = means.median(dim=0).values
        radius = max(2 * float((means - centre).norm(dim=1).median()), 1e-6)
        contracted = contract((means - centre) / radius)
        low, high = contracted.amin(dim=0), contracted.amax(dim=0)
        span = max(float((high - low).max()), 1e-6)
        scale_step = _float32(SCALE_RANGE * 2.0**-bits.scales)
        scales = (splats.scales.detach().sort(dim=1, descending=True).values / scale_step).round().long()
        precision = int(_quat_precision(scales, scale_step).double().mean()) + _QUAT_HEADROOM * UNIT
        x, y, z = map(_float32, centre.tolist())
        corner_x, corner_y, corner_z = map(_float32, low.tolist())
        return cls(
            centre=(x, y, z),
            radius=_float32(radius),
            origin=(corner_x, corner_y, corner_z),
            mean_step=_float32(span * 2.0**-bits.means),
            scale_step=scale_step,
            quat_step=_float32(MRP_RANGE * 2.0 ** (-bits.quats - _QUAT_HEADROOM)),
            luma_step=_float32(2.0**-bits.luma),
            chroma_step=_float32(2.0**-bits.chroma),
            sh_step=_float32(2.0**-bits.sh),
            alpha_levels=max(2, round(2.0**bits.opacities)),
            quat_precision=precision,
        )

    def quat_skips(self, scales: Tensor) -> Tensor:
        """[N] int64: how many low bits of their rotations gaussians do without. `scales` [N, 3] as quantised."""
        spare = self.quat_precision - _quat_precision(scales, self.scale_step)
        return ((spare + UNIT // 2) // UNIT).clamp(0, MAX_SKIP)

    @property
    def alphas(self) -> list[float]:
        """The alpha of every level."""
        last = self.alpha_levels - 1
        return [_ALPHA_MIN + (_ALPHA_MAX - _ALPHA_MIN) * level / last for level in range(self.alpha_levels)]


def _quat_precision(scales: Tensor, scale_step: float) -> Tensor:
    # [N] int64, in 1 / UNIT bit: the precision that rotations need, up to a constant
    a, b, c = (round(UNIT * slope * scale_step) for slope in _QUAT_PRECISION)
    return a * scales[:, 0] + b * scales[:, 1] + c * scales[:, 2]


def contract(points: Tensor) -> Tensor:
    """[N, 3] -> [N, 3] in the ball of radius 2; the unit ball stays as it is."""
    norm = squared_norm(points).sqrt().clamp_min(1)[:, None]
    return torch.where(norm > 1, (2 - 1 / norm) / norm * points, points)


def expand(points: Tensor, most: float) -> Tensor:
    """The inverse of `contract`, for norms up to `most` < 2; what lies beyond is taken as if it lay there."""
    norm = squared_norm(points).sqrt().clamp_min(1)[:, None]
    return torch.where(norm > 1, 1 / (2 - norm.clamp_max(most)) / norm * points, points)


def squared_norm(vectors: Tensor) -> Tensor:
    """[N, 3] -> [N], summed in a fixed order, so that it is the same everywhere."""
    x, y, z = vectors.unbind(dim=1)
    return x * x + y * y + z * z


def _float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()
