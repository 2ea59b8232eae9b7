"""From a size in bytes to how many gaussians, how finely quantised."""

from collections.abc import Callable
from dataclasses import fields

import torch

from nifi_ns.compress._settings import CompressionSettings, target_bytes
from nifi_ns.compress.codec import PRESETS, Bits, encode
from nifi_ns.splats import Splats

_SAMPLE = 20_000  # gaussians that tell the size of all


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


def chosen_sh_degree(splats: Splats, settings: CompressionSettings) -> int:
    """The degree of the harmonics to keep: as the settings say, and no more than there is."""
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
    """Bits on the way from `coarse` (0) to `fine` (1), or beyond."""
    mixed = {f.name: (1 - part) * getattr(coarse, f.name) + part * getattr(fine, f.name) for f in fields(Bits)}
    return Bits(**mixed)
