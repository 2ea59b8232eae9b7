"""One training step: updates the restorer phi-, then its critic phi+, on a batch of crops."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nifi_ns.diffusion import AdapterName, Backbone
from nifi_ns.errors import NifiError
from nifi_ns.learning import AdapterOptimizer, averaged, processes
from nifi_ns.restore._config import TrainingConfig
from nifi_ns.restore._objective import LossNoise, critic_loss, restorer_loss
from nifi_ns.restore._perceptual import Perceptual

ADAPTERS: tuple[AdapterName, ...] = ("phi_minus", "phi_plus")
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Updates:
    """Updates both adapters with their optimizers, and the running mean of phi-.

    Random numbers depend only on the seed and the step. Each process takes its samples of the batch.
    """

    def __init__(self, backbone: Backbone, config: TrainingConfig, perceptual: Perceptual):
        """Set up optimizers for the adapters of `backbone`.

        Raises:
            NifiError: if the batch cannot be split evenly over the processes.
        """
        self.skipped = 0
        """Number of updates skipped because a loss or gradient was not finite."""
        self._backbone, self._config, self._perceptual = backbone, config, perceptual
        count = config.batch_per_process(processes.count())
        first, size = count * processes.index(), count // config.gradient_accumulation
        self.samples = slice(first, first + count)
        """This process's samples of each batch."""
        self._parts = [slice(i, i + size) for i in range(0, count, size)]
        rates = {"phi_minus": config.optimization.lr, "phi_plus": config.optimization.critic_lr}
        trained = ADAPTERS if config.objective.needs_critic else ADAPTERS[:1]
        self._optimizers = {name: self._optimizer(name, rates[name]) for name in trained}
        self._parameters = list(backbone.adapter_parameters("phi_minus"))
        self._mean = None
        if config.optimization.ema:
            from diffusers.training_utils import EMAModel

            self._mean = EMAModel(self._parameters, decay=config.optimization.ema, foreach=True)
        self._skipped_in_a_row = 0

    def _optimizer(self, name: AdapterName, lr: float) -> AdapterOptimizer:
        parameters, scale = self._backbone.adapter_parameters(name), self._config.precision == "fp16"
        return AdapterOptimizer(parameters, lr, self._config.optimization, self._backbone.device, scale_gradients=scale)

    def update(self, batch: dict[str, Tensor], step: int) -> dict[str, float]:
        """Update each adapter on this process's samples of a batch. Return the losses, averaged over all samples.

        Losses that are not finite are omitted.

        Raises:
            NifiError: if too many updates in a row were not finite, or another process ended.
        """
        config, device = self._config, self._backbone.device
        generator = torch.Generator().manual_seed(_seed(config.seed, step))
        noise, critic_noise = (self._sample_noise(generator) for _ in ADAPTERS)
        most = config.data.attended_photos
        count = int(torch.randint(most + 1, (), generator=generator)) if most else 0
        clean, degraded = (batch[key].to(device) for key in ("clean", "degraded"))
        attended_photos = batch["attended_photos"][:, :count].to(device) if count else None
        losses, restored = self._update_restorer(clean, degraded, attended_photos, noise, step)
        if losses and config.objective.needs_critic:
            losses |= self._update_critic(restored, critic_noise, step)
        return losses

    def _sample_noise(self, generator: torch.Generator) -> LossNoise:
        backbone, config = self._backbone, self._config
        side = config.data.crop // backbone.downsampling
        shape = (config.batch_size, backbone.latent_channels, side, side)
        return LossNoise.sample(shape, config.objective, generator).part(self.samples, backbone.device)

    def _update_restorer(
        self, clean: Tensor, degraded: Tensor, attended_photos: Tensor | None, noise: LossNoise, step: int
    ) -> tuple[dict[str, float], list[Tensor]]:
        """Return the losses of phi- (empty if skipped) and the restored latents of each part of the batch."""
        terms, restored = [], []
        for part in self._parts:
            photos = None if attended_photos is None else attended_photos[part]
            images, own_noise = (degraded[part], clean[part]), noise.part(part, clean.device)
            objective, decode = self._config.objective, self._config.decode
            with self._autocast():
                loss = restorer_loss(self._backbone, *images, own_noise, objective, self._perceptual, photos, decode)
            self._optimizers["phi_minus"].backward(loss.total / len(self._parts))
            restored.append(loss.restored)
            terms.append({"loss": loss.total.detach(), **loss.terms})
        losses = self._descend("phi_minus", terms, step)
        if losses and self._mean is not None:
            self._mean.step(self._parameters)
        return losses, restored

    def _update_critic(self, restored: list[Tensor], noise: LossNoise, step: int) -> dict[str, float]:
        terms = []
        for part, latents in zip(self._parts, restored, strict=True):
            own_noise = noise.part(part, latents.device)
            with self._autocast():
                loss = critic_loss(self._backbone, latents, own_noise.timestep, own_noise.noise, own_noise.dropped)
            self._optimizers["phi_plus"].backward(loss / len(self._parts))
            terms.append({"critic": loss.detach()})
        return self._descend("phi_plus", terms, step)

    def _descend(self, name: AdapterName, parts: Sequence[dict[str, Tensor]], step: int) -> dict[str, float]:
        """Update an adapter from its gradients. Return the mean losses of all parts, or none if it was skipped."""
        means = torch.stack([torch.stack([*part.values()]) for part in parts]).mean(0)
        factor = self._config.optimization.lr_factor(step, self._config.steps)
        if self._optimizers[name].step(means, factor):
            self._skipped_in_a_row = 0
            return dict(zip(parts[0], means.tolist(), strict=True))
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= self._config.max_bad_steps:
            raise NifiError(
                f"step {step + 1}: {self._skipped_in_a_row} losses in a row were not finite: "
                "train again with lower learning rates or in fp32"
            )
        return {}

    def _autocast(self) -> AbstractContextManager[object]:
        precision = self._config.precision
        return torch.autocast(self._backbone.device.type, _PRECISIONS[precision], enabled=precision != "fp32")

    def averaged(self) -> AbstractContextManager[None]:
        """Replace phi- by its running mean, if there is one, within the block."""
        return averaged(self._parameters, self._mean)

    @property
    def torch_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Torch optimizers by adapter name."""
        return {name: optimizer.optimizer for name, optimizer in self._optimizers.items()}

    def adapters(self) -> dict[str, dict[str, Tensor]]:
        """Return the adapters' weights by name, including the running mean as `mean` if there is one."""
        weights = {name: self._backbone.adapter_state_dict(name) for name in ADAPTERS}
        if self._mean is not None:
            with self.averaged():
                mean = self._backbone.adapter_state_dict("phi_minus")
                weights["mean"] = {key: value.clone() for key, value in mean.items()}
        return weights

    def state(self) -> dict[str, Any]:
        """Return the state without weights and moments, as JSON values."""
        scalers = {name: optimizer.scaler.state_dict() for name, optimizer in self._optimizers.items()}
        return {
            "skipped": self.skipped,
            "scalers": scalers,
            "averaged": 0 if self._mean is None else self._mean.optimization_step,
        }

    def load(self, adapters: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Restore the values of `adapters` and `state`."""
        if self._mean is not None:
            self._backbone.load_adapter_state_dict("phi_minus", adapters["mean"])
            values = [parameter.detach().clone() for parameter in self._parameters]
            self._mean.load_state_dict({"shadow_params": values, "optimization_step": state["averaged"]})
        for name in ADAPTERS:
            self._backbone.load_adapter_state_dict(name, adapters[name])
        for name, optimizer in self._optimizers.items():
            optimizer.scaler.load_state_dict(state["scalers"][name])
        self.skipped = state["skipped"]


def _seed(seed: int, step: int) -> int:
    """Return a seed for the noise of one step, distinct from those of other steps and of the crops."""
    return int(np.random.SeedSequence([seed, step, 0xF1]).generate_state(1, np.uint64)[0] >> np.uint64(1))
