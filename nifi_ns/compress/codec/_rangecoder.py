"""Adaptive binary range coding with mixed contexts, in integers only, so that every machine decodes the same bits.

One function, `code_symbol`, both encodes and decodes, so that the two always match. A symbol is coded bit by bit down a
binary tree. For each bit, several adaptive models with different contexts give a probability each. Their logits are
summed with learned weights (logistic mixing, Mahoney 2005), and a carry-less range coder spends -log2(p) bits. No model
is stored: the decoder learns the same models from the symbols it decodes.

Compiled with numba, because each bit's probability depends on all earlier bits, which cannot be vectorised.
"""

from decimal import Decimal

import numpy as np

from nifi_ns.compiled import compiled

_TOP = 0xFF0000000000  # the interval has 48 bits; its top 8 are written once they are the same at both ends
_MASK = 0xFFFFFFFFFFFF

MAX_BITS = 24
"""Maximum number of bits of a symbol."""
NODES = 256 + MAX_BITS
"""Number of slots in the tree of one context."""

_LOGITS = 4096  # logits from -8 to 8 in units of 1/256 nat


def _squash(logit: int) -> int:
    # with Decimal, which rounds the same on all machines; NumPy's exp depends on the processor
    chance = 65536 / (1 + (Decimal(-logit) / 256).exp())
    return min(max(int(chance.to_integral_value()), 32), 65536 - 32)


SQUASH = np.array([_squash(i - _LOGITS // 2) for i in range(_LOGITS)])
"""Probabilities (of 65536), indexed by logit + 2048."""
STRETCH = np.clip(np.searchsorted(SQUASH, 16 * np.arange(4096) + 8) - _LOGITS // 2, -2047, 2047)
"""Logits, indexed by probability // 16."""
_LIMIT = 127
RATES = 65536 // np.arange(2, _LIMIT + 3)
"""Adaptation rate of a probability at its n-th observation (of 65536)."""


class RangeCoder:
    """State and buffer of a coder. Compiled functions take `coder.state, coder.buffer, coder.decoding`."""

    def __init__(self, data: bytes | None = None, bits: int = 0) -> None:
        """Prepare to decode `data`, or to encode up to `bits` binary decisions."""
        self.decoding = data is not None
        self.state = np.array([0, _MASK, 0, 0], dtype=np.int64)
        if data is None:
            self.buffer = np.empty(16 + 2 * bits, dtype=np.uint8)  # a decision costs at most 12 bits
        else:
            self.buffer = np.frombuffer(data, dtype=np.uint8).copy()
            self.state[2:] = 6, int.from_bytes(data[:6].ljust(6, b"\0"), "big")

    def finish(self) -> bytes:
        """Return the encoded bytes without trailing zeros, which the decoder appends itself."""
        low, high, position = (int(v) for v in self.state[:3])
        for kept in range(1, 7):
            step = 1 << (8 * (6 - kept))
            value = -(-low // step) * step
            if value <= high:
                break
        return (self.buffer[:position].tobytes() + value.to_bytes(6, "big")[:kept]).rstrip(b"\0")


@compiled()
def _code_bit(state, buffer, decoding, bit, probability):
    # state: low, high, position in the buffer, and the next 48 bits if decoding; probability: of a one (of 65536)
    low, high = state[0], state[1]
    span = high - low
    middle = low + (span >> 16) * probability + (((span & 0xFFFF) * probability) >> 16)
    if decoding:
        bit = 1 if state[3] <= middle else 0
    if bit == 1:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) & _TOP == 0:
        position = state[2]
        if decoding:
            byte = buffer[position] if position < len(buffer) else 0  # the encoder drops trailing zeros
            state[3] = ((state[3] << 8) & _MASK) | byte
        else:
            buffer[position] = high >> 40
        state[2] = position + 1
        low = (low << 8) & _MASK
        high = ((high << 8) & _MASK) | 0xFF
    state[0], state[1] = low, high
    return bit


@compiled()
def code_symbol(state, buffer, decoding, symbol, bits, chances, counts, slots, weights):
    """Encode or decode one symbol of `bits` bits, the highest first.

    Args:
        state, buffer, decoding: the attributes of a `RangeCoder`.
        symbol: the symbol to encode; ignored when decoding.
        bits: 0 to MAX_BITS.
        chances, counts: [slots] int64, adaptive probabilities (initially 32768) and the number of their updates.
        slots: [M] int64, for each model the start of the tree (NODES slots) of the current context.
        weights: [MAX_BITS, M] int64, mixing weights of the models by bit; 65536 is one.

    Returns:
        The symbol.
    """
    models = len(slots)
    node = 1
    value = 0
    for depth in range(bits):
        total = 0
        for m in range(models):
            total += weights[depth, m] * STRETCH[chances[slots[m] + node] >> 4]
        mixed = min(max(total >> 16, -2047), 2047)
        chance = SQUASH[mixed + 2048]
        bit = _code_bit(state, buffer, decoding, (symbol >> (bits - 1 - depth)) & 1, chance)
        target = bit << 16
        error = target - chance
        for m in range(models):
            slot = slots[m] + node
            weights[depth, m] += (STRETCH[chances[slot] >> 4] * error + 8192) >> 14
            chances[slot] += ((target - chances[slot]) * RATES[counts[slot]]) >> 16
            counts[slot] = min(counts[slot] + 1, _LIMIT)
        value = value * 2 + bit
        node = node * 2 + bit if depth < 7 else 256 + depth  # after 8 bits, earlier bits are no context
    return value
