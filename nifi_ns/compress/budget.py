"""From a size in bytes to how many gaussians, how finely quantised."""

from dataclasses import dataclass, fields
from itertools import pairwise

from torch import Tensor

from nifi_ns.compress.codec import encode
from nifi_ns.compress.grid import PRESETS, Bits, Grid
from nifi_ns.splats import Splats

_LEAST = 64  # gaussians of the coarsest level


@dataclass(frozen=True)
class Ladder:
    """How a scene file is divided into levels."""

    levels: int = 1
    """Number of levels; scenes of few gaussians get fewer."""
    ratio: float = 4.0
    """How many times more gaussians, and about as many times more bytes, there are with each level."""

    def up_to(self, count: int) -> list[int]:
        """Gaussians up to each level, `count` up to the last."""
        totals = [int(count / self.ratio**i) for i in reversed(range(self.levels))]
        return [total for total in totals if _LEAST <= total < count] + [count]

    def counts(self, count: int) -> list[int]:
        """Gaussians that each level adds."""
        return [high - low for low, high in pairwise([0, *self.up_to(count)])]


def affordable(
    splats: Splats, order: Tensor, bits: Bits, target: int, grid: Grid | None = None, ladder: Ladder | None = None
) -> tuple[int, bytes]:
    """How many gaussians fit into `target` bytes, and their file.

    Args:
        splats: the gaussians.
        order: [N] their indices, the most important first.
        bits: see `encode`.
        target: bytes.
        grid: see `encode`.
        ladder: the levels of the file; one by default.

    Returns:
        The count n, and the file of the gaussians `order[:n]`; 0 and no bytes if not even one fits.
    """
    fits, fails, best = 0, len(order) + 1, b""
    guess = min(len(order), max(1, target // 6))  # not all at once: there may be millions
    while fails - fits > 1 and len(best) < 0.998 * target:
        data = encode(splats[order[:guess]], bits, grid, (ladder or Ladder()).counts(guess))
        if len(data) <= target:
            fits, best = guess, data
        else:
            fails = guess
        # bytes are almost proportional to gaussians: aim just below the target
        guess = min(max(int(guess * 0.999 * target / len(data)), fits + 1), fails - 1)
    return fits, best


def bits_for(splats: Splats, target: int) -> Bits:
    """As many bits as all gaussians can have within `target` bytes, between the presets coarse and fine.

    Below coarse, more gaussians gave less than the bits they were paid with (measured after fine-tuning, at a tenth of
    a scene's gaussians); beyond it, bits are spent only when there are no more gaussians to spend bytes on.
    """
    coarse, fine = PRESETS["coarse"], PRESETS["fine"]
    if len(encode(splats, coarse)) > target:
        return coarse
    low, high = 0.0, 1.0
    for _ in range(6):
        middle = (low + high) / 2
        if len(encode(splats, between(coarse, fine, middle))) <= target:
            low = middle
        else:
            high = middle
    return between(coarse, fine, low)


def between(coarse: Bits, fine: Bits, part: float) -> Bits:
    """Bits on the way from `coarse` (0) to `fine` (1)."""
    mixed = {f.name: (1 - part) * getattr(coarse, f.name) + part * getattr(fine, f.name) for f in fields(Bits)}
    return Bits(**mixed)
