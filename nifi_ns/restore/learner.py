"""One adapter under its optimizer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nifi_ns.restore import processes
from nifi_ns.restore.config import TrainingConfig


class Learner:
    """One adapter under AdamW; refuses updates that are not finite, in all processes alike."""

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, config: TrainingConfig, device: torch.device):
        self._parameters = list(parameters)
        self._lr = lr
        self._clip = config.grad_clip
        self.optimizer = torch.optim.AdamW(self._parameters, lr=lr, weight_decay=config.weight_decay)
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
