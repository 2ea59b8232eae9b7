"""From a size in bytes to how many gaussians, how finely quantised."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise

from nifi_ns.compress.grid import PRESETS, Bits

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


def affordable(count: int, target: int, encode_first: Callable[[int], bytes]) -> tuple[int, bytes]:
    """How many gaussians, of `count`, fit into `target` bytes, and their file.

    Args:
        count: the number of gaussians there are.
        target: bytes.
        encode_first: the file of the n most important gaussians.

    Returns:
        n and its file; 0 and no bytes if not even one fits.
    """
    fits, fails, best = 0, count + 1, b""
    guess = min(count, max(1, target // 6))  # not all at once: there may be millions
    while fails - fits > 1 and len(best) < 0.998 * target:
        data = encode_first(guess)
        if len(data) <= target:
            fits, best = guess, data
        else:
            fails = guess
        # bytes are almost proportional to gaussians: aim just below the target
        guess = min(max(int(guess * 0.999 * target / len(data)), fits + 1), fails - 1)
    return fits, best


def bits_for(target: int, encode_all: Callable[[Bits], bytes]) -> Bits:
    """As many bits as all gaussians can have within `target` bytes, between the presets coarse and fine.

    Below coarse, more gaussians gave less than the bits they were paid with (measured after fine-tuning, at a tenth of
    a scene's gaussians); beyond it, bits are spent only when there are no more gaussians to spend bytes on.

    Args:
        target: bytes.
        encode_all: the file of all gaussians, quantised to some bits.
    """
    coarse, fine = PRESETS["coarse"], PRESETS["fine"]
    if len(encode_all(coarse)) > target:
        return coarse
    low, high = 0.0, 1.0
    for _ in range(6):
        middle = (low + high) / 2
        if len(encode_all(between(coarse, fine, middle))) <= target:
            low = middle
        else:
            high = middle
    return between(coarse, fine, low)


def between(coarse: Bits, fine: Bits, part: float) -> Bits:
    """Bits on the way from `coarse` (0) to `fine` (1), or beyond."""
    mixed = {f.name: (1 - part) * getattr(coarse, f.name) + part * getattr(fine, f.name) for f in fields(Bits)}
    return Bits(**mixed)
