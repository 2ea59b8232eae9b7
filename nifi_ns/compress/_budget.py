"""Choose the number of gaussians and their quantisation for a size in bytes."""

from collections.abc import Callable
from dataclasses import fields

import torch

from nifi_ns.compress._settings import CompressionSettings, target_bytes
from nifi_ns.compress.codec import BITS, Bits, encode
from nifi_ns.splats import Splats

_SAMPLE = 20_000  # gaussians that are encoded to estimate the size of all


def affordable(count: int, target: int, encode_first: Callable[[int], bytes]) -> tuple[int, bytes]:
    """Return how many of `count` gaussians fit into `target` bytes, and the file that holds them.

    Args:
        count: total number of gaussians.
        target: size of the file in bytes.
        encode_first: returns the file of the n most important gaussians.

    Returns:
        The number and the file. The file has at least 99.8 % of `target` bytes if there are enough gaussians. If not
        even one gaussian fits, the number is 0 and the file is empty.
    """
    fits, fails, best = 0, count + 1, b""
    guess = min(count, max(1, target // 6))  # encoding millions of gaussians to begin with would be slow
    while fails - fits > 1 and len(best) < 0.998 * target:
        data = encode_first(guess)
        if len(data) <= target:
            fits, best = guess, data
        else:
            fails = guess
        # the size is almost proportional to the number of gaussians: aim just below the target
        guess = min(max(int(guess * 0.999 * target / len(data)), fits + 1), fails - 1)
    return fits, best


def bits_for(target: int, encode_all: Callable[[Bits], bytes]) -> Bits:
    """Return the finest bits, between the presets coarse and fine, at which all gaussians fit into `target` bytes.

    Finer bits than coarse are used only if all gaussians fit. Coarser bits never help: they make room for more
    gaussians, but lose more quality than those add (measured after fine-tuning, at a tenth of a scene's gaussians).

    Args:
        target: size of the file in bytes.
        encode_all: returns the file of all gaussians, quantised to the given bits.
    """
    coarse, fine = BITS["coarse"], BITS["fine"]
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


def chosen_sh_degree(splats: Splats, settings: CompressionSettings) -> int:
    """Return the SH degree that the settings ask for, at most that of `splats`.

    "auto" is the highest degree at which all gaussians fit into the target size.
    """
    if settings.sh_degree != "auto":
        return min(settings.sh_degree, splats.sh_degree)
    count = min(len(splats), _SAMPLE)
    some = splats[torch.arange(count) * len(splats) // count]
    for degree in range(splats.sh_degree, 0, -1):
        size = len(encode(some.with_sh_degree(degree), BITS["coarse"])) * len(splats) / count
        if size <= target_bytes(settings.target_size):
            return degree
    return 0


def between(coarse: Bits, fine: Bits, part: float) -> Bits:
    """Interpolate bits from `coarse` (`part` 0) to `fine` (`part` 1), or extrapolate beyond them."""
    mixed = {f.name: (1 - part) * getattr(coarse, f.name) + part * getattr(fine, f.name) for f in fields(Bits)}
    return Bits(**mixed)
