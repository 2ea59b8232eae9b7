"""Context models of quantised attributes: each channel of integers is coded given its neighbours and earlier channels.

A stream starts with four numbers for each of its channels, in the first level only: the lowest value (signed varint);
then, as varints, the number of bits of a value above the lowest, the middle (above the lowest), and the shift. The
range coder's bytes for all channels follow. A value becomes a context as `clamp((value - middle) >> shift, -8, 7)`. The
contexts of a symbol are the values of the nearest gaussians that precede it in Morton order, and those of the channels
that the plan names. Models keep adapting from level to level.
"""

from dataclasses import dataclass

import numpy as np

from nifi_ns.compiled import compiled
from nifi_ns.compress.codec._container import Reader, Writer
from nifi_ns.compress.codec._grid import MAX_SKIP
from nifi_ns.compress.codec._quantize import MAX_SYMBOLS
from nifi_ns.compress.codec._rangecoder import MAX_BITS, NODES, RangeCoder, code_symbol

Plan = list[tuple[str, tuple[str, ...]]]
"""Channels in coding order, each with the earlier channels (or "spacing") that it is conditioned on."""

_NEIGHBOURS = 3
_WINDOW = 24  # how many preceding gaussians are searched for neighbours
_BINS = 16  # number of contexts of one value


class ChannelModels:
    """Adaptive models of all channels, kept from level to level."""

    def __init__(self, channels: dict[str, np.ndarray] | None = None) -> None:
        """Prepare to encode `channels`, [N] integers each, of all levels together; or to decode, without `channels`."""
        self.shapes = {name: _Shape.fit(values) for name, values in (channels or {}).items()}
        self.adapted: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def models_of(self, name: str, contexts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return probabilities, counts and mixing weights of a channel with `contexts` contexts besides neighbours."""
        if name not in self.adapted:
            models = 3 + contexts
            slots = NODES * (1 + _BINS * (models - 1))
            weights = np.full((MAX_BITS, models), 65536 // models, dtype=np.int64)
            self.adapted[name] = np.full(slots, 32768, dtype=np.int64), np.zeros(slots, dtype=np.int64), weights
        return self.adapted[name]


class ChannelCoder:
    """Codes the channels of one level, given its positions. Each channel can be a context of later ones."""

    def __init__(self, coordinates: np.ndarray, models: ChannelModels) -> None:
        self.count = len(coordinates)
        self.neighbours, spacing = _nearest_before(coordinates)
        self.contexts = {"spacing": spacing}
        self.models = models

    def encode(self, plan: Plan, channels: dict[str, np.ndarray], skips: np.ndarray | None) -> bytes:
        """Encode the channels of `plan`, [N] int64 each. `skips` [N]: how many low bits of the values are zero."""
        shapes = [self.models.shapes[name] for name, _ in plan]
        head = Writer()
        for (name, _), shape in zip(plan, shapes, strict=True):
            if name not in self.models.adapted:
                shape.write(head)
        coder = RangeCoder(bits=self.count * sum(shape.bits for shape in shapes))
        for (name, given), shape in zip(plan, shapes, strict=True):
            self._code(coder, name, given, shape, skips, channels[name] - shape.low)
        return bytes(head.data) + coder.finish()

    def decode(self, plan: Plan, data: bytes, skips: np.ndarray | None) -> dict[str, np.ndarray]:
        """Decode the channels of `plan`, [N] int64 each; `skips` as for `encode`.

        Raises:
            CorruptFileError: if a number in the stream is out of range.
        """
        head = Reader(data)
        for name, _ in plan:
            if name not in self.models.shapes:
                self.models.shapes[name] = _Shape.read(head)
        coder = RangeCoder(data[head.position :])
        channels = {}
        for name, given in plan:
            shape = self.models.shapes[name]
            values = np.zeros(self.count, dtype=np.int64)
            self._code(coder, name, given, shape, skips, values)
            channels[name] = values + shape.low
        return channels

    def _code(
        self,
        coder: RangeCoder,
        name: str,
        given: tuple[str, ...],
        shape: "_Shape",
        skips: np.ndarray | None,
        values: np.ndarray,
    ) -> None:
        skips = np.zeros(self.count, dtype=np.int64) if skips is None else skips
        side = np.empty((self.count, len(given)), dtype=np.int64)
        for place, other in enumerate(given):
            side[:, place] = self.contexts[other]
        _code_channel(
            *(coder.state, coder.buffer, coder.decoding),
            *(values, shape.bits, skips, shape.middle, shape.shift),
            *(self.neighbours, side),
            *self.models.models_of(name, len(given)),
        )
        self.contexts[name] = np.clip((values - shape.middle) >> shape.shift, -_BINS // 2, _BINS // 2 - 1) + _BINS // 2


@dataclass(frozen=True)
class _Shape:
    # the parameters of a channel, stored before its symbols
    low: int
    bits: int
    middle: int
    shift: int

    @classmethod
    def fit(cls, values: np.ndarray) -> "_Shape":
        low = int(values.min()) >> MAX_SKIP << MAX_SKIP  # so that skipped bits stay zero
        middle = int(np.median(values))
        spread = float(np.abs(values - middle).mean())
        shift = max(0, round(np.log2(max(spread, 1e-9) * 6 / _BINS)))
        return cls(low, int(values.max() - low).bit_length(), middle - low, shift)

    def write(self, writer: Writer) -> None:
        writer.signed(self.low)
        for value in (self.bits, self.middle, self.shift):
            writer.unsigned(value)

    @classmethod
    def read(cls, reader: Reader) -> "_Shape":
        low = reader.signed(most=MAX_SYMBOLS)
        bits, middle, shift = (reader.unsigned(most=most) for most in (MAX_SYMBOLS.bit_length(), 2 * MAX_SYMBOLS, 24))
        return cls(low, bits, middle, shift)


@compiled()
def _nearest_before(coordinates):
    # [N, 3] int64 in Morton order -> indices [N, 3] of the nearest preceding gaussians, nearest first, -1 where there
    # are none; and [N], a context from the distance to the nearest
    n = len(coordinates)
    nearest = np.full((n, _NEIGHBOURS), -1, dtype=np.int64)
    spacing = np.full(n, _BINS - 1, dtype=np.int64)
    distances = np.empty(_NEIGHBOURS, dtype=np.int64)
    for i in range(n):
        distances[:] = 1 << 60
        for j in range(max(0, i - _WINDOW), i):
            distance = 0
            for axis in range(3):
                distance += (coordinates[i, axis] - coordinates[j, axis]) ** 2
            place = _NEIGHBOURS
            while place > 0 and distance < distances[place - 1]:
                place -= 1
            for k in range(_NEIGHBOURS - 1, place, -1):
                distances[k], nearest[i, k] = distances[k - 1], nearest[i, k - 1]
            if place < _NEIGHBOURS:
                distances[place], nearest[i, place] = distance, j
        bits = 0
        while i > 0 and distances[0] >> (2 * bits) > 0:
            bits += 1
        spacing[i] = min(bits, _BINS - 1)
    return nearest, spacing


@compiled()
def _code_channel(
    state, buffer, decoding, values, bits, skips, middle, shift, neighbours, side, chances, counts, weights
):
    # values: [N] from 0 to 2^bits - 1, filled in when decoding; skips: [N] low bits that are zero and not coded;
    # side: [N, C] contexts from other channels; chances, counts, weights: see ChannelModels
    sides = side.shape[1]
    models = 3 + sides
    starts = np.zeros(models + 1, dtype=np.int64)
    for m in range(models):
        starts[m + 1] = starts[m] + NODES * (1 if m == 0 else _BINS)
    slots = np.zeros(models, dtype=np.int64)
    for i in range(len(values)):
        first = middle if neighbours[i, 0] < 0 else values[neighbours[i, 0]]
        total = 2 * first
        for k in range(1, _NEIGHBOURS):
            total += first if neighbours[i, k] < 0 else values[neighbours[i, k]]
        for m, value in ((1, first), (2, total >> 2)):
            slots[m] = starts[m] + NODES * (
                min(max((value - middle) >> shift, -_BINS // 2), _BINS // 2 - 1) + _BINS // 2
            )
        for c in range(sides):
            slots[3 + c] = starts[3 + c] + NODES * side[i, c]
        skip = min(skips[i], bits)
        symbol = values[i] >> skip
        values[i] = code_symbol(state, buffer, decoding, symbol, bits - skip, chances, counts, slots, weights) << skip
