"""Noise schedules: the forward process of a diffusion backbone, and clean estimates from its network's output.

Every schedule is `x_t = signal(t) x_0 + sigma(t) eps`. `t` is a timestep of the backbone's own diffusers scheduler (0
to 1000), which also defines the coefficients. Schedules differ in what the network predicts, and so in the formula of
the clean estimate. Reading SD3's velocity as epsilon, or the reverse, gives no clean estimate, so each class below has
its own formulas.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from nifi_ns.errors import NifiError


class Schedule(ABC):
    """Forward process and parameterization. The arguments [T] are the scheduler's table, in any order."""

    def __init__(self, timesteps: Tensor, signals: Tensor, sigmas: Tensor) -> None:
        order = torch.argsort(timesteps)
        tables = torch.stack([timesteps[order].double(), signals[order].double(), sigmas[order].double()])
        self._tables = {torch.device("cpu"): tables}  # [3, T] per device in use

    def _look_up(self, row: int, t: float | Tensor) -> float | Tensor:
        """Return the table's value at the timestep nearest to `t`: a float for a number, float32 [B] for a tensor.

        A tensor is looked up on its own device: a copy to the CPU would wait for all pending work.
        """
        if not isinstance(t, Tensor):
            return float(_nearest(self._tables[torch.device("cpu")], row, torch.tensor(t, dtype=torch.float64)))
        if t.device not in self._tables:  # float32 represents timesteps exactly, and some GPUs lack float64
            self._tables[t.device] = self._tables[torch.device("cpu")].to(t.device, torch.float32)
        tables = self._tables[t.device]
        return _nearest(tables, row, t.detach().to(tables.dtype)).float()

    def timestep(self, t: float | Tensor) -> float | Tensor:
        """Return the tabulated timestep nearest to `t`, to condition the network on: it was trained on these."""
        return self._look_up(0, t)

    def signal(self, t: float | Tensor) -> float | Tensor:
        """Return the factor of the image in x_t, in [0, 1]: a float, or float32 [B] if `t` is a tensor."""
        return self._look_up(1, t)

    def sigma(self, t: float | Tensor) -> float | Tensor:
        """Return the noise's standard deviation at `t`, in [0, 1]: a float, or float32 [B] if `t` is a tensor."""
        return self._look_up(2, t)

    def _coefficients(self, t: float | Tensor, like: Tensor) -> tuple[Any, Any]:
        """Return (signal, sigma), shaped to multiply a batch such as `like` [B, C, h, w]."""
        signal, sigma = self.signal(t), self.sigma(t)
        if isinstance(signal, Tensor) and isinstance(sigma, Tensor) and signal.ndim:
            shape = (-1, *[1] * (like.ndim - 1))
            return signal.to(like).reshape(shape), sigma.to(like).reshape(shape)
        return signal, sigma

    def add_noise(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """Return `x_t = signal(t) x_0 + sigma(t) noise`, for x0 and noise [B, C, h, w]."""
        signal, sigma = self._coefficients(t, x0)
        return signal * x0 + sigma * noise

    @abstractmethod
    def to_x0(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """Return the clean latents [B, C, h, w] that the network's output `out` at `x_t` implies."""

    @abstractmethod
    def to_eps(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """Return the noise [B, C, h, w] that the output `out` at `x_t` implies; the score is `-eps / sigma(t)`."""


def _nearest(tables: Tensor, row: int, t: Tensor) -> Tensor:
    """Return `tables[row]` where `tables[0]` (ascending) is nearest to `t`, of any shape."""
    timesteps = tables[0]
    above = torch.searchsorted(timesteps, t).clamp(1, len(timesteps) - 1)
    nearer_below = t - timesteps[above - 1] <= timesteps[above] - t
    return tables[row][above - nearer_below.long()]


class FlowMatching(Schedule):
    """`x_t = (1 - s) x_0 + s eps`; the network predicts the velocity `eps - x_0` (SD3, Esser et al. 2024)."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FlowMatching":
        """Read the configuration of a diffusers FlowMatchEulerDiscreteScheduler, whose table includes its `shift`.

        Raises:
            NifiError: if the shift depends on the image size.
        """
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        if config.get("use_dynamic_shifting"):
            raise NifiError(
                "the scheduler shifts noise levels with the image's size (use_dynamic_shifting), which is not supported"
            )
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(config)
        sigmas = scheduler.timesteps.double() / scheduler.config["num_train_timesteps"]
        return cls(scheduler.timesteps, 1 - sigmas, sigmas)

    def to_x0(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """Return `x_t - s v`."""
        return x_t - self._coefficients(t, x_t)[1] * out

    def to_eps(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """Return `x_t + (1 - s) v`."""
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
        """Read the configuration of a DDPM-like diffusers scheduler (DDIM, PNDM, Euler, ...), which share its betas.

        Raises:
            NifiError: if the network predicts neither epsilon nor v.
        """
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        scheduler: Any = DDPMScheduler.from_config(config)
        prediction = scheduler.config["prediction_type"]
        if prediction not in ("epsilon", "v_prediction"):
            raise NifiError(f"the scheduler's prediction_type is {prediction!r}: expected epsilon or v_prediction")
        return cls(torch.arange(len(scheduler.alphas_cumprod)), scheduler.alphas_cumprod.double(), prediction)

    def to_x0(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """Return `(x_t - sqrt(1 - abar) eps) / sqrt(abar)`, or for v_prediction `sqrt(abar) x_t - sqrt(1 - abar) v`."""
        signal, sigma = self._coefficients(t, x_t)
        return (x_t - sigma * out) / signal if self.prediction == "epsilon" else signal * x_t - sigma * out

    def to_eps(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """Return the output itself, or for v_prediction `sqrt(1 - abar) x_t + sqrt(abar) v`."""
        signal, sigma = self._coefficients(t, x_t)
        return out if self.prediction == "epsilon" else sigma * x_t + signal * out
