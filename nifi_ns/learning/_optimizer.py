"""The optimizer of an adapter, its learning rate schedule, and the running mean of its parameters."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from nifi_ns.errors import NifiError, require
from nifi_ns.learning import processes

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer options. The default learning rates are the paper's."""

    optimizer: Literal["adamw", "fused", "adamw8bit"] = "adamw"
    """adamw: AdamW. fused: AdamW in one kernel, faster on a GPU. adamw8bit: moments take a quarter of the memory;
    needs bitsandbytes (`pip install 'nifi-ns[train]'`)."""
    lr: float = 5e-6
    """Learning rate of the restorer phi-."""
    critic_lr: float = 1e-6
    """Learning rate of the critic phi+."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rates after the warm-up: constant, or a cosine that falls to 5 %."""
    warmup_steps: int = 500
    """Steps over which the learning rates rise from zero."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW."""
    grad_clip: float = 1.0
    """Maximum gradient norm of each adapter."""
    ema: float = 0.0
    """Decay per step of a running mean of phi-, such as 0.999. The mean is then evaluated and saved. 0 keeps none."""

    def __post_init__(self) -> None:
        if not 0 <= self.ema < 1:
            raise NifiError(f"ema: expected a decay in [0, 1), got {self.ema}")
        if self.optimizer == "adamw8bit":
            require("bitsandbytes", extra="train", what="optimizer adamw8bit")

    def lr_factor(self, step: int, steps: int) -> float:
        """Return the factor of the learning rates at `step` (from 0) of `steps`.

        It depends only on the step, whereas torch's schedulers count calls. Checkpoints need no scheduler state, a
        resumed training may have another length, and skipped steps count.
        """
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "constant":
            return warmup
        return warmup * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


class AdapterOptimizer:
    """AdamW for one adapter. All processes skip updates that are not finite."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        lr: float,
        config: OptimizerConfig,
        device: torch.device,
        *,
        scale_gradients: bool = False,
    ):
        """Set up AdamW for `parameters` at the learning rate `lr`. float16 needs `scale_gradients`."""
        self._parameters = list(parameters)
        self._lr = lr
        self._clip = config.grad_clip
        self.optimizer = make_optimizer(self._parameters, lr, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=scale_gradients)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to the gradient of this step."""
        self.scaler.scale(loss).backward()

    def step(self, losses: Tensor, lr_factor: float) -> bool:
        """Update with the mean gradient over all processes. Return whether the update was made.

        Args:
            losses: [N], replaced by their means over all processes. The update is skipped unless they and the gradient
                are finite.
            lr_factor: factor of the learning rate at this step.

        Raises:
            NifiError: if another process ended.
        """
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        processes.average([*gradients, losses])
        self.optimizer.param_groups[0]["lr"] = self._lr * lr_factor
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip)
        finite = bool(torch.isfinite(losses).all() & torch.isfinite(norm))
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return finite


def make_optimizer(parameters: Sequence[nn.Parameter], lr: float, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the configured optimizer with one group of parameters."""
    if config.optimizer == "adamw8bit":
        return import_module("bitsandbytes").optim.AdamW8bit(parameters, lr=lr, weight_decay=config.weight_decay)
    fused = config.optimizer == "fused"
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=config.weight_decay, fused=fused)


@contextmanager
def averaged(parameters: Sequence[nn.Parameter], mean: "EMAModel | None") -> Iterator[None]:
    """Replace `parameters` by their running mean, if there is one, within the block."""
    if mean is None:
        yield
        return
    mean.store(parameters)
    mean.copy_to(parameters)
    try:
        yield
    finally:
        mean.restore(parameters)
