"""Quantised positions as an octree of counts, which spends no bits on the order of gaussians.

Gaussians are sorted by Morton code. The root cell holds all of them. Each occupied cell is halved along x, y and z in
turn, and the number of gaussians in its lower half is coded, breadth first.
"""

import numpy as np

from nifi_ns.compiled import compiled
from nifi_ns.compress.codec._rangecoder import MAX_BITS, NODES, RangeCoder, code_symbol

_COUNTS = 48  # number of contexts from the gaussians in a cell: their number below 16, then its bit length


class PositionCoder:
    """Codes the positions of successive levels of detail; its models keep adapting from level to level."""

    def __init__(self, depth: int) -> None:
        """Prepare to code coordinates of `depth` bits."""
        self.depth = depth
        slots = NODES * (3 * depth + 3 * _COUNTS + _COUNTS)
        self._chances, self._counts = np.full(slots, 32768, dtype=np.int64), np.zeros(slots, dtype=np.int64)
        self._weights = np.full((2, MAX_BITS, 2), 65536 // 2, dtype=np.int64)
        self._weights_low = np.full((MAX_BITS, 1), 65536, dtype=np.int64)

    def encode(self, codes: np.ndarray) -> bytes:
        """Encode the positions of a level: [N] sorted int64 Morton codes of 3 * depth bits."""
        coder = RangeCoder(bits=6 * self.depth * len(codes))
        self._code(coder, codes)
        return coder.finish()

    def decode(self, data: bytes, count: int) -> np.ndarray:
        """Decode `count` sorted Morton codes, [N] int64."""
        codes = np.zeros(count, dtype=np.int64)
        self._code(RangeCoder(data), codes)
        return codes

    def _code(self, coder: RangeCoder, codes: np.ndarray) -> None:
        models = (self._chances, self._counts, self._weights, self._weights_low)
        _code_positions(coder.state, coder.buffer, coder.decoding, codes, self.depth, *models)


@compiled()
def _code_positions(state, buffer, decoding, codes, depth, chances, counts, weights, weights_low):
    # codes is filled in when decoding; for the rest see PositionCoder
    total = len(codes)
    levels = 3 * depth
    # models of how a cell divides (0 all low, 1 all high, 2 both), by level, and by count and axis;
    # then of how many are low, by count
    starts = NODES * np.array([0, levels, levels + 3 * _COUNTS])
    slots, slot_low = np.zeros(2, dtype=np.int64), np.zeros(1, dtype=np.int64)

    cells, sizes = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    child_cells, child_sizes = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    sizes[0] = total
    occupied = 1
    for level in range(levels):
        begin, children = 0, 0
        for cell in range(occupied):
            size = sizes[cell]
            low = 0
            while not decoding and low < size and (codes[begin + low] >> (levels - 1 - level)) & 1 == 0:
                low += 1
            begin += size
            lone = 1 if size == 1 else 0  # a single gaussian cannot divide: one bit is enough
            kind = min(size, 16) if size < 16 else 15 + _bit_length(size)
            slots[0] = starts[0] + NODES * level
            slots[1] = starts[1] + NODES * (3 * kind + level % 3)
            symbol = 1 if low == 0 else 0 if low == size else 2
            symbol = code_symbol(state, buffer, decoding, symbol, 2 - lone, chances, counts, slots, weights[lone])
            if symbol >= 2:
                slot_low[0] = starts[2] + NODES * kind
                bits = _bit_length(size - 2)
                low = 1 + code_symbol(state, buffer, decoding, low - 1, bits, chances, counts, slot_low, weights_low)
                low = min(low, size - 1)  # only a damaged file has more
            else:
                low = size if symbol == 0 else 0
            for upper in range(2):
                count = size - low if upper else low
                if count > 0:
                    child_cells[children], child_sizes[children] = 2 * cells[cell] + upper, count
                    children += 1
        cells, child_cells = child_cells, cells
        sizes, child_sizes = child_sizes, sizes
        occupied = children
    if decoding:
        position = 0
        for cell in range(occupied):
            codes[position : position + sizes[cell]] = cells[cell]
            position += sizes[cell]


@compiled()
def _bit_length(value):
    bits = 0
    while value > 0:
        value >>= 1
        bits += 1
    return bits
