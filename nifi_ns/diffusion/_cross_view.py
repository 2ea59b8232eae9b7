"""Self-attention across several views in one forward pass, for any diffusers model with attention processors."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from nifi_ns.errors import NifiError


class CrossViewAttnProcessor:
    """An attention processor that runs another on the tokens of several views together.

    A batch is [views of the first sample, views of the second, ...]. As in Difix and multi-view diffusion (Wu et al.
    2025), tokens [B V, N, D] attend as [B, V N, D], with unchanged weights.
    """

    def __init__(self, processor: Any, num_views: int) -> None:
        self.processor = processor
        self.num_views = num_views

    def __call__(
        self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **more: Any
    ) -> Any:
        """Return the output of `processor` for tokens [B V, N, D] and, in joint attention (SD3), text tokens."""
        inputs = (hidden_states, encoder_hidden_states)
        joined = [None if x is None else x.reshape(-1, self.num_views * x.shape[1], x.shape[2]) for x in inputs]
        outputs = self.processor(attn, joined[0], encoder_hidden_states=joined[1], **more)
        both = outputs if isinstance(outputs, tuple) else (outputs,)
        parted = tuple(x.reshape(-1, x.shape[1] // self.num_views, x.shape[2]) for x in both)
        return parted if isinstance(outputs, tuple) else parted[0]


class CrossViewAttention:
    """The self-attention layers of one network. They attend within one view by default."""

    def __init__(self, network: nn.Module, layers: Collection[str]) -> None:
        """
        Args:
            network: a diffusers model.
            layers: last parts of the names of its self-attention layers.
        """
        self.num_views = 1
        named = ((name.rpartition(".")[2], module) for name, module in network.named_modules())
        self._layers: list[Any] = [module for name, module in named if name in layers and hasattr(module, "processor")]

    @contextmanager
    def across(self, num_views: int) -> Iterator[None]:
        """Let self-attention attend across `num_views` views within the block. Not thread-safe.

        Raises:
            NifiError: if there is more than one view, and the network has no such layers.
        """
        if num_views > 1 and not self._layers:
            raise NifiError("this backbone cannot attend to photos: its network has no self-attention layers to extend")
        before = self.num_views
        self._set_num_views(num_views)
        try:
            yield
        finally:
            self._set_num_views(before)

    def _set_num_views(self, num_views: int) -> None:
        for layer in self._layers:
            own = layer.processor.processor if self.num_views > 1 else layer.processor
            layer.processor = CrossViewAttnProcessor(own, num_views) if num_views > 1 else own
        self.num_views = num_views
