"""Choose how many gaussians, and how finely quantised, for a size in bytes."""

from collections.abc import Callable
from dataclasses import fields

import torch

from nifi_ns.compress._settings import CompressionSettings, target_bytes
from nifi_ns.compress.codec import PRESETS, Bits, encode
from nifi_ns.splats import Splats

_SAMPLE = 20_000  # gaussians from which the size of all is estimated


def affordable(count: int, target: int, encode_first: Callable[[int], bytes]) -> tuple[int, bytes]:
    """Return how many of `count` gaussians fit into `target` bytes, and their file.

    Args:
        count: number of gaussians.
        target: bytes.
        encode_first: returns the file of the n most important gaussians.

    Returns:
        n and its file, at least 99.8 % of `target` if there are enough gaussians; 0 and no bytes if not even one fits.
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
    """Return the finest bits, between the presets coarse and fine, at which all gaussians fit into `target` bytes.

    Bits finer than coarse are spent only when there are no more gaussians to spend bytes on. Coarser ones do not pay:
    the gaussians that they make room for gain less than the bits lose (measured after fine-tuning, at a tenth of a
    scene's gaussians).

    Args:
        target: bytes.
        encode_all: returns the file of all gaussians, quantised to some bits.
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


def chosen_sh_degree(splats: Splats, settings: CompressionSettings) -> int:
    """Return the SH degree to keep: as the settings say, and no higher than that of `splats`."""
    if settings.sh_degree != "auto":
        return min(settings.sh_degree, splats.sh_degree)
    count = min(len(splats), _SAMPLE)
    some = splats[torch.arange(count) * len(splats) // count]
    for degree in range(splats.sh_degree, 0, -1):
        size = len(encode(some.with_sh_degree(degree), PRESETS["coarse"])) * len(splats) / count
        if size <= target_bytes(settings.target_size):
            return degree
    return 0


def between(coarse: Bits, fine: Bits, part: float) -> Bits:
    """Interpolate bits between `coarse` (part 0) and `fine` (part 1), or extrapolate them."""
    mixed = {f.name: (1 - part) * getattr(coarse, f.name) + part * getattr(fine, f.name) for f in fields(Bits)}
    return Bits(**mixed)
