"""Several views in one forward pass: self-attention that sees all of them, in any diffusers model with processors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class AcrossViews:
    """An attention processor that runs another on the tokens of all views at once.

    The batch is [views of the first sample, views of the second, ...]. Difix and multi-view diffusion mix views like
    this (Wu et al. 2025): [B V, N, D] tokens attend as [B, V N, D], by the weights that are there.
    """

    def __init__(self, processor: Any, views: int) -> None:
        self.processor = processor
        self.views = views

    def __call__(
        self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **more: Any
    ) -> Any:
        """What `processor` gives, by view: of tokens [B V, N, D], and, in joint attention (SD3), of a text's."""
        inputs = (hidden_states, encoder_hidden_states)
        joined = [None if x is None else x.reshape(-1, self.views * x.shape[1], x.shape[2]) for x in inputs]
        outputs = self.processor(attn, joined[0], encoder_hidden_states=joined[1], **more)
        both = outputs if isinstance(outputs, tuple) else (outputs,)
        parted = tuple(x.reshape(-1, x.shape[1] // self.views, x.shape[2]) for x in both)
        return parted if isinstance(outputs, tuple) else parted[0]


@contextmanager
def across_views(network: Any, views: int) -> Iterator[None]:
    """Within it, self-attention of `network` sees so many views at once. Not thread-safe by itself."""
    if views == 1:
        yield
        return
    # "attn1" of U-Nets attends to the image, "attn2" to the text; SD3's "attn" to both
    named = ((name.rpartition(".")[2], module) for name, module in network.named_modules())
    layers: list[Any] = [m for name, m in named if name in ("attn1", "attn") and hasattr(m, "processor")]
    before = [layer.processor for layer in layers]
    for layer in layers:
        layer.processor = AcrossViews(layer.processor, views)
    try:
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.processor = processor


def views_across(network: Any) -> int:
    """How many views its self-attention sees at once, just now."""
    processors = (getattr(module, "processor", None) for module in network.modules())
    return next((processor.views for processor in processors if isinstance(processor, AcrossViews)), 1)
