"""A compression, step by step, for any training loop: what to prune when, from when on to quantise, and the end.

    compressor = Compressor(settings)
    for step in range(settings.steps):
        keep = compressor.prune_mask(step, splats, judge)
        ...  # where it is not None, remove the other gaussians and their optimiser state
        image = render(compressor.as_decoded(step, splats, judge), view)
        ...  # loss, backward, optimiser step
    compressed = compressor.finish(splats, judge)

`judge` tells the importance of splats, as `importance.importance` does in some views.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nifi_ns.compress._budget import affordable, bits_for
from nifi_ns.compress._importance import Importance, Judge
from nifi_ns.compress._settings import CompressionSettings, target_bytes
from nifi_ns.compress.codec import PRESETS, Bits, Grid, Ladder, decode, encode, fake_quantize, grades, growth
from nifi_ns.errors import NifiError
from nifi_ns.splats import Splats

_SLACK = 1.03
"""Prunings leave room for gaussians getting cheaper while they are fine-tuned; the rest goes at the end."""


_WHOLE_FROM = 0.8
"""Part of the steps after which all look at the whole, which the others had pulled away from its best."""
_SETTLED = 0.9
"""Part of the gaussians whose level is not changed any more after the last pruning."""


@dataclass(frozen=True)
class Compressed:
    """A scene file and what it decodes to."""

    data: bytes
    """The file."""
    splats: Splats
    """`decode(data)`."""
    bits: Bits
    """How finely it is quantised."""


class Compressor:
    """The schedule of one compression; the gaussians and their optimiser stay with the caller."""

    def __init__(self, settings: CompressionSettings, *, antialiased: bool = False) -> None:
        """For gaussians that are drawn antialiased or not, which the scene file says."""
        self.settings, self.antialiased = settings, antialiased
        self.target = target_bytes(settings.target_size)
        spacing = settings.prune_until * settings.steps / settings.stages
        self._prunings = sorted({round(i * spacing) for i in range(settings.stages)})
        self._bits: Bits | None = None
        self._quantizers: tuple[Grid, Tensor] | None = None  # and how finely each gaussian uses them
        self._ladder = Ladder(settings.levels, settings.level_ratio)
        self._rank: Tensor | None = None

    def prune_mask(self, step: int, splats: Splats, judge: Judge) -> Tensor | None:
        """Which gaussians to keep at this step: [N] booleans, or None where it is no time for pruning.

        Raises:
            NifiError: if the target size has no room for any.
        """
        if step not in self._prunings:
            return None
        importance = judge(splats)
        order = importance.fading.argsort(descending=True)
        count, _ = self._affordable(splats, order, importance, round(_SLACK * self.target))
        left = len(self._prunings) - self._prunings.index(step)
        count = round(len(splats) * (count / len(splats)) ** (1 / left))  # by equal factors
        keep = torch.zeros(len(splats), dtype=torch.bool, device=splats.device)
        keep[order[:count]] = True
        self._rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))[keep]
        return keep

    def room_for(self, splats: Splats, judge: Judge) -> int:
        """About how many gaussians the target size has room for, and somewhat more.

        Raises:
            NifiError: if not for any.
        """
        importance = judge(splats)
        order = importance.fading.argsort(descending=True)
        return self._affordable(splats, order, importance, round(_SLACK * self.target))[0]

    def as_decoded(self, step: int, splats: Splats, judge: Judge) -> Splats:
        """What to draw at this step: the splats, or what the file would decode to, with gradients to the splats.

        Now and then it is what a coarser level would decode to.
        """
        if step < self.settings.quantize_from * self.settings.steps:
            return splats
        if self._quantizers is None:
            importance = judge(splats.detach())
            bits = self._chosen_bits(splats, importance)
            self._quantizers = Grid.fit(splats, bits), grades(importance.changing)
        whole = fake_quantize(splats, *self._quantizers)
        count = self._level_at(step, len(splats))
        if count is None or self._rank is None:
            return whole
        coarse = whole[self._rank < count]
        return replace(coarse, scales=coarse.scales + growth(coarse, whole))

    def finish(self, splats: Splats, judge: Judge) -> Compressed:
        """The scene file of the most important gaussians that fit.

        Raises:
            NifiError: if the target size has no room for any.
        """
        splats = splats.detach()
        importance = judge(splats)
        order = importance.fading.argsort(descending=True)
        if self._rank is not None:
            # who is in which level was settled by the last pruning; only the least important are judged anew
            kept, doubtful = order.tensor_split([round(_SETTLED * len(order))])
            order = torch.cat([kept[self._rank[kept].argsort()], doubtful])
        _, data = self._affordable(splats, order, importance, self.target)
        return Compressed(data, decode(data).to(splats.device), self._chosen_bits(splats, importance))

    def _affordable(self, splats: Splats, order: Tensor, importance: Importance, target: int) -> tuple[int, bytes]:
        bits = self._chosen_bits(splats, importance)

        def encode_first(count: int) -> bytes:
            first, counts = order[:count], self._ladder.counts(count)
            if self._quantizers is None:
                return self._encode(splats[first], bits, grades(importance.changing[first]), counts)
            grid, graded = self._quantizers
            return self._encode(splats[first], grid, graded[first], counts)

        count, data = affordable(len(splats), target, encode_first)
        if count == 0:
            raise NifiError(
                f"not a single gaussian fits into {self.settings.target_size}: choose a larger --target-size"
            )
        return count, data

    def _encode(self, splats: Splats, grid: Grid | Bits, grades: Tensor, counts: Sequence[int] | None = None) -> bytes:
        return encode(splats, grid, grades, counts, antialiased=self.antialiased)

    def _level_at(self, step: int, count: int) -> int | None:
        # how many of `count` gaussians are up to the level that this step looks at; None for all of them
        coarser = self._ladder.up_to(count)[:-1]
        every = round(1 / self.settings.level_steps) if self.settings.level_steps else 0
        if not coarser or not every or step % every or step >= _WHOLE_FROM * self.settings.steps:
            return None
        return coarser[step // every % len(coarser)]

    def _chosen_bits(self, splats: Splats, importance: Importance) -> Bits:
        # chosen once, of all gaussians
        if self._bits is None:
            named = self.settings.bits
            if named == "auto":
                graded = grades(importance.changing)
                self._bits = bits_for(round(_SLACK * self.target), lambda bits: self._encode(splats, bits, graded))
            else:
                self._bits = PRESETS[named]
        return self._bits
