"""Noise schedules: the forward process of a diffusion backbone, and clean estimates from what its network predicts.

Every schedule is `x_t = signal(t) x_0 + sigma(t) eps`, with `t` a timestep of the backbone's own diffusers scheduler
(0 to 1000) and the coefficients read from that scheduler. What differs is what the network predicts, hence how a clean
estimate is made of it. Read as epsilon, SD3's velocity gives no clean estimate, nor the reverse: each class below has
its own formulas.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from nifi_ns.errors import NifiError


class Schedule(ABC):
    """Forward process and parameterization; the arguments [T] are the scheduler's table, in any order."""

    def __init__(self, timesteps: Tensor, signals: Tensor, sigmas: Tensor) -> None:
        order = torch.argsort(timesteps)
        self._timesteps = timesteps[order].double()  # [T]
        self._signals = signals[order].double()  # [T]
        self._sigmas = sigmas[order].double()  # [T]

    def _look_up(self, table: Tensor, t: float | Tensor) -> float | Tensor:
        """The table's value at the timestep nearest to `t`: a float for a number, float32 [B] for a tensor."""
        times = torch.as_tensor(t, dtype=torch.float64).detach().cpu()
        above = torch.searchsorted(self._timesteps, times).clamp(1, len(self._timesteps) - 1)
        nearer_below = times - self._timesteps[above - 1] <= self._timesteps[above] - times
        values = table[above - nearer_below.long()]
        return values.to(t.device, torch.float32) if isinstance(t, Tensor) else float(values)

    def timestep(self, t: float | Tensor) -> float | Tensor:
        """The tabulated timestep nearest to `t`: the one the network was trained on, and is told."""
        return self._look_up(self._timesteps, t)

    def signal(self, t: float | Tensor) -> float | Tensor:
        """What is left of the image at `t`, a factor in [0, 1]: a float, or a tensor [B] where `t` is one."""
        return self._look_up(self._signals, t)

    def sigma(self, t: float | Tensor) -> float | Tensor:
        """The standard deviation of the noise at `t`, in [0, 1]: a float, or a tensor [B] where `t` is one."""
        return self._look_up(self._sigmas, t)

    def _coefficients(self, t: float | Tensor, like: Tensor) -> tuple[Any, Any]:
        """(signal, sigma), shaped to multiply a batch such as `like` [B, C, h, w]."""
        signal, sigma = self.signal(t), self.sigma(t)
        if isinstance(signal, Tensor) and isinstance(sigma, Tensor) and signal.ndim:
            shape = (-1, *[1] * (like.ndim - 1))
            return signal.to(like).reshape(shape), sigma.to(like).reshape(shape)
        return signal, sigma

    def add_noise(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """`x_t = signal(t) x_0 + sigma(t) noise`, for x0 and noise [B, C, h, w]."""
        signal, sigma = self._coefficients(t, x0)
        return signal * x0 + sigma * noise

    @abstractmethod
    def to_x0(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """The clean latents [B, C, h, w] meant by the network's output `out` at `x_t`."""

    @abstractmethod
    def to_eps(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """The noise [B, C, h, w] meant by the network's output `out` at `x_t`; the score there is `-eps / sigma(t)`."""


class FlowMatching(Schedule):
    """`x_t = (1 - s) x_0 + s eps`; the network predicts the velocity `eps - x_0` (SD3, Esser et al. 2024)."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FlowMatching":
        """From the configuration of a diffusers FlowMatchEulerDiscreteScheduler, whose table includes the shift."""
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        if config.get("use_dynamic_shifting"):
            raise NifiError(
                "the scheduler shifts noise levels with the image's size (use_dynamic_shifting), which is not supported"
            )
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(config)
        sigmas = scheduler.timesteps.double() / scheduler.config["num_train_timesteps"]
        return cls(scheduler.timesteps, 1 - sigmas, sigmas)

    def to_x0(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """`x_t - s v`."""
        return x_t - self._coefficients(t, x_t)[1] * out

    def to_eps(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """`x_t + (1 - s) v`."""
        return x_t + self._coefficients(t, x_t)[0] * out


class Diffusion(Schedule):
    """`x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps`; the network predicts eps (Ho 2020) or v (Salimans & Ho 2022)."""

    def __init__(
        self, timesteps: Tensor, alphas_cumprod: Tensor, prediction: Literal["epsilon", "v_prediction"]
    ) -> None:
        super().__init__(timesteps, alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())
        self.prediction = prediction

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Diffusion":
        """From the configuration of a DDPM-like diffusers scheduler (DDIM, PNDM, Euler, ...): they share its betas."""
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        scheduler: Any = DDPMScheduler.from_config(config)
        prediction = scheduler.config["prediction_type"]
        if prediction not in ("epsilon", "v_prediction"):
            raise NifiError(f"the scheduler's prediction_type is {prediction!r}: expected epsilon or v_prediction")
        return cls(torch.arange(len(scheduler.alphas_cumprod)), scheduler.alphas_cumprod.double(), prediction)

    def to_x0(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """epsilon: `(x_t - sqrt(1 - abar) eps) / sqrt(abar)`; v_prediction: `sqrt(abar) x_t - sqrt(1 - abar) v`."""
        signal, sigma = self._coefficients(t, x_t)
        return (x_t - sigma * out) / signal if self.prediction == "epsilon" else signal * x_t - sigma * out

    def to_eps(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """epsilon: the output itself; v_prediction: `sqrt(1 - abar) x_t + sqrt(abar) v`."""
        signal, sigma = self._coefficients(t, x_t)
        return out if self.prediction == "epsilon" else sigma * x_t + signal * out
