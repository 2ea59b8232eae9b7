"""One adapter in training: under its optimizer, and as the running mean of what it was."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nifi_ns.learning import processes

if TYPE_CHECKING:
    from nifi_ns.restore import TrainingConfig


class Learner:
    """One adapter under AdamW; refuses updates that are not finite, in all processes alike."""

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, config: "TrainingConfig", device: torch.device):
        self._parameters = list(parameters)
        self._lr = lr
        self._clip = config.grad_clip
        self.optimizer = make_optimizer(self._parameters, lr, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")

    def add(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to that of this step."""
        self.scaler.scale(loss).backward()

    def step(self, losses: Tensor, rate: float) -> bool:
        """Descend by the mean over processes of what was added, at `rate` times the learning rate.

        `losses` [N], of which the mean over processes takes the place, decide with the gradient: unless all is finite,
        nothing changes, and the result is False.
        """
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        processes.average([*gradients, losses])
        self.optimizer.param_groups[0]["lr"] = self._lr * rate
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip)
        finite = bool(torch.isfinite(losses).all() & torch.isfinite(norm))
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return finite


def learning_rate(step: int, config: "TrainingConfig") -> float:
    """Factor of an adapter's learning rate at `step`, from 0."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant":
        return warmup
    return warmup * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


def make_optimizer(parameters: Sequence[nn.Parameter], lr: float, config: "TrainingConfig") -> torch.optim.Optimizer:
    """The optimizer that `config` names, over one group of parameters."""
    if config.optimizer == "adamw8bit":
        return import_module("bitsandbytes").optim.AdamW8bit(parameters, lr=lr, weight_decay=config.weight_decay)
    fused = config.optimizer == "fused"
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=config.weight_decay, fused=fused)


class RunningMean:
    """The exponential moving average of an adapter's parameters."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        self._parameters = list(parameters)
        self._decay = decay
        self._means = [parameter.detach().clone() for parameter in self._parameters]

    def update(self, step: int) -> None:
        """Take in the parameters as they are after `step`, from 0. The first steps count for less than `decay` says."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for mean, parameter in zip(self._means, self._parameters, strict=True):
            mean.lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this, the parameters are their means."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, parameter in enumerate(self._parameters):
            parameter.data, self._means[i] = self._means[i], parameter.data
