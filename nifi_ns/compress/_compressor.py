"""Compression for any training loop: when and what to prune, when to quantise, and how to finish.

    compressor = Compressor(settings)
    for step in range(settings.steps):
        keep = compressor.prune_mask(step, splats, measure)
        ...  # if it is not None, remove the other gaussians and their optimiser state
        image = render(compressor.as_decoded(step, splats, measure), view)
        ...  # loss, backward, optimiser step
    compressed = compressor.finish(splats, measure)

`measure` returns the importance of splats, for example by calling `measure_importance` with some views.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nifi_ns.compress._budget import affordable, bits_for
from nifi_ns.compress._importance import Importance, ImportanceMeasure
from nifi_ns.compress._settings import CompressionSettings, target_bytes
from nifi_ns.compress.codec import (
    BITS,
    Bits,
    Grid,
    LevelsOfDetail,
    decode,
    encode,
    fake_quantize,
    growth,
    precision_classes,
)
from nifi_ns.errors import NifiError
from nifi_ns.splats import Splats

_SLACK = 1.03
"""Prunings keep this factor more than fits, because fine-tuning makes gaussians cheaper; `finish` drops the excess."""
_WHOLE_FROM = 0.8
"""Fraction of the steps after which only the whole scene is optimised: steps on coarser levels cost it quality."""
_SETTLED = 0.9
"""Fraction of the gaussians whose level of detail no longer changes after the last pruning."""


@dataclass(frozen=True)
class Compressed:
    """A scene file and the gaussians it decodes to."""

    data: bytes
    """The scene file."""
    splats: Splats
    """`decode(data)`."""
    bits: Bits
    """The quantisation of the file."""


class Compressor:
    """The schedule of one compression. The caller owns the gaussians and their optimiser."""

    def __init__(self, settings: CompressionSettings, *, antialiased: bool = False) -> None:
        """Begin a compression; the scene file records whether the gaussians are drawn `antialiased`."""
        self.settings, self.antialiased = settings, antialiased
        self.target = target_bytes(settings.target_size)
        spacing = settings.prune_until * settings.steps / settings.stages
        self._prunings = sorted({round(i * spacing) for i in range(settings.stages)})
        self._bits: Bits | None = None
        self._quantizers: tuple[Grid, Tensor] | None = None  # the grid, and the precision class of each gaussian
        self._lod = LevelsOfDetail(settings.lod_levels, settings.lod_ratio)
        self._rank: Tensor | None = None

    def prune_mask(self, step: int, splats: Splats, measure: ImportanceMeasure) -> Tensor | None:
        """Return a mask [N] of the gaussians to keep at this step, or None if this step prunes nothing.

        Raises:
            NifiError: if not a single gaussian fits into the target size.
        """
        if step not in self._prunings:
            return None
        importance = measure(splats)
        order = importance.opacity_sensitivity.argsort(descending=True)
        count, _ = self._affordable(splats, order, importance, round(_SLACK * self.target))
        left = len(self._prunings) - self._prunings.index(step)
        count = round(len(splats) * (count / len(splats)) ** (1 / left))  # each pruning divides by the same factor
        keep = torch.zeros(len(splats), dtype=torch.bool, device=splats.device)
        keep[order[:count]] = True
        self._rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))[keep]
        return keep

    def room_for(self, splats: Splats, measure: ImportanceMeasure) -> int:
        """Return about how many gaussians fit into the target size, with a margin for the final choice.

        Raises:
            NifiError: if not a single gaussian fits.
        """
        importance = measure(splats)
        order = importance.opacity_sensitivity.argsort(descending=True)
        return self._affordable(splats, order, importance, round(_SLACK * self.target))[0]

    def as_decoded(self, step: int, splats: Splats, measure: ImportanceMeasure) -> Splats:
        """Return the gaussians to draw at this step: `splats` at first, later those that the file would decode to.

        Gradients flow back to `splats`. A fraction of the steps (`lod_steps` in the settings) draws a coarser level of
        detail.
        """
        if step < self.settings.quantize_from * self.settings.steps:
            return splats
        if self._quantizers is None:
            importance = measure(splats.detach())
            bits = self._chosen_bits(splats, importance)
            self._quantizers = Grid.fit(splats, bits), precision_classes(importance.position_sensitivity)
        whole = fake_quantize(splats, *self._quantizers)
        count = self._level_at(step, len(splats))
        if count is None or self._rank is None:
            return whole
        coarse = whole[self._rank < count]
        return replace(coarse, scales=coarse.scales + growth(coarse, whole))

    def finish(self, splats: Splats, measure: ImportanceMeasure) -> Compressed:
        """Return the scene file of the most important gaussians that fit.

        Raises:
            NifiError: if not a single gaussian fits into the target size.
        """
        splats = splats.detach()
        importance = measure(splats)
        order = importance.opacity_sensitivity.argsort(descending=True)
        if self._rank is not None:
            # the last pruning fixed the level of each gaussian; only the least important are ranked again
            settled, others = order.tensor_split([round(_SETTLED * len(order))])
            order = torch.cat([settled[self._rank[settled].argsort()], others])
        _, data = self._affordable(splats, order, importance, self.target)
        return Compressed(data, decode(data).to(splats.device), self._chosen_bits(splats, importance))

    def _affordable(self, splats: Splats, order: Tensor, importance: Importance, target: int) -> tuple[int, bytes]:
        bits = self._chosen_bits(splats, importance)

        def encode_first(count: int) -> bytes:
            first, counts = order[:count], self._lod.counts(count)
            if self._quantizers is None:
                return self._encode(
                    splats[first], bits, precision_classes(importance.position_sensitivity[first]), counts
                )
            grid, precision = self._quantizers
            return self._encode(splats[first], grid, precision[first], counts)

        count, data = affordable(len(splats), target, encode_first)
        if count == 0:
            raise NifiError(
                f"not a single gaussian fits into {self.settings.target_size}: choose a larger --target-size"
            )
        return count, data

    def _encode(
        self, splats: Splats, grid: Grid | Bits, precision: Tensor, counts: Sequence[int] | None = None
    ) -> bytes:
        return encode(splats, grid, precision, counts, antialiased=self.antialiased)

    def _level_at(self, step: int, count: int) -> int | None:
        # the number of gaussians this step optimises if it draws a coarser level; None for all
        coarser = self._lod.cumulative_counts(count)[:-1]
        every = round(1 / self.settings.lod_steps) if self.settings.lod_steps else 0
        if not coarser or not every or step % every or step >= _WHOLE_FROM * self.settings.steps:
            return None
        return coarser[step // every % len(coarser)]

    def _chosen_bits(self, splats: Splats, importance: Importance) -> Bits:
        # chosen once, at the first call
        if self._bits is None:
            named = self.settings.bits
            if named == "auto":
                precision = precision_classes(importance.position_sensitivity)
                self._bits = bits_for(round(_SLACK * self.target), lambda bits: self._encode(splats, bits, precision))
            else:
                self._bits = BITS[named]
        return self._bits
