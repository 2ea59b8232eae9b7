"""Levels of detail: how to divide a scene file, and how much to enlarge gaussians when levels are missing."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from nifi_ns.splats import Splats

GROWTH_UNIT = 64
"""Growths are stored as integers in 1 / GROWTH_UNIT nat."""
MAX_GROWTH = 4
"""Maximum growth in nats."""
_LEAST = 64  # minimum number of gaussians in the coarsest level


@dataclass(frozen=True)
class LevelsOfDetail:
    """How a scene file is divided into levels."""

    levels: int = 1
    """Number of levels; small scenes have fewer."""
    ratio: float = 4.0
    """Ratio between the numbers of gaussians (and roughly bytes) of successive levels."""

    def cumulative_counts(self, count: int) -> list[int]:
        """Return the number of gaussians up to and including each level; the last is `count`."""
        totals = [int(count / self.ratio**i) for i in reversed(range(self.levels))]
        return [total for total in totals if _LEAST <= total < count] + [count]

    def counts(self, count: int) -> list[int]:
        """Return the number of gaussians that each level adds."""
        return [high - low for low, high in pairwise([0, *self.cumulative_counts(count)])]


@torch.no_grad()
def growth(part: Splats, whole: Splats) -> float:
    """Return how much to enlarge `part`, in nats (0 to MAX_GROWTH) of its scales, to cover as much as `whole`."""
    centre = whole.means.median(dim=0).values
    radius = 2 * (whole.means - centre).norm(dim=1).median().clamp_min(1e-6)

    def covered(splats: Splats) -> Tensor:
        # distant gaussians look smaller
        distance = ((splats.means - centre).norm(dim=1) / radius).clamp_min(1)
        area = splats.scales.sort(dim=1).values[:, 1:].sum(dim=1) - 2 * distance.log()
        return (logsigmoid(splats.opacities) + area).logsumexp(dim=0)

    return min(max(float(covered(whole) - covered(part)) / 2, 0.0), float(MAX_GROWTH))
