"""gsplat's MCMC strategy (Kheradmand et al. 2024) in plain torch: gsplat's own needs CUDA kernels."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from gsplat.strategy import MCMCStrategy
from gsplat.utils import normalized_quat_to_rotmat
from torch import Tensor

Parameters = dict[str, torch.nn.Parameter] | torch.nn.ParameterDict
Optimizers = dict[str, torch.optim.Optimizer]


@dataclass
class TorchMCMCStrategy(MCMCStrategy):
    """gsplat's MCMC strategy on any device, with the same schedule and random draws."""

    @torch.no_grad()
    def step_post_backward(
        self, params: Parameters, optimizers: Optimizers, state: dict[str, Any], step: int, info: Any, lr: float
    ) -> None:
        """Relocate, add and perturb gaussians after an optimiser step.

        Args:
            params: "means" [N, 3], "scales" [N, 3] logarithms, "quats" [N, 4], "opacities" [N] or [N, 1] logits, and
                any others [N, ...]. Replaced when gaussians are added.
            optimizers: one per entry of `params`, each with one group.
            state: the result of `initialize_state`.
            step: the training step.
            info: unused.
            lr: the learning rate of means.
        """
        del info
        state["binoms"] = state["binoms"].to(params["means"].device)
        if self.refine_start_iter < step < self.refine_stop_iter and step % self.refine_every == 0:
            self._relocate_gs(params, optimizers, state["binoms"])
            self._add_new_gs(params, optimizers, state["binoms"])
        opacities = params["opacities"].flatten().sigmoid()
        axes = normalized_quat_to_rotmat(F.normalize(params["quats"], dim=-1)) * params["scales"].exp()[:, None]
        # opaque gaussians are not moved
        noise = torch.randn_like(params["means"]) * torch.sigmoid(100 * (0.005 - opacities))[:, None]
        params["means"].add_(((axes @ axes.mT) @ (noise * lr * self.noise_lr)[..., None])[..., 0])

    @torch.no_grad()
    def _relocate_gs(self, params: Parameters, optimizers: Optimizers, binoms: Tensor) -> int:
        # nearly transparent gaussians become copies of others, sampled by opacity
        opacities = params["opacities"].flatten().sigmoid()
        dead, alive = (mask.nonzero()[:, 0] for mask in (opacities <= self.min_opacity, opacities > self.min_opacity))
        if len(dead) == 0:
            return 0
        chosen = alive[torch.multinomial(opacities[alive], len(dead), replacement=True)]
        self._split(params, chosen, binoms)
        for name, parameter in params.items():
            parameter[dead] = parameter[chosen]
            for value in _per_gaussian(optimizers[name], parameter).values():
                value[chosen] = 0
        return len(dead)

    @torch.no_grad()
    def _add_new_gs(self, params: Parameters, optimizers: Optimizers, binoms: Tensor) -> int:
        count = len(params["means"])
        more = max(0, min(self.cap_max, int(1.05 * count)) - count)
        if more == 0:
            return 0
        chosen = torch.multinomial(params["opacities"].flatten().sigmoid(), more, replacement=True)
        self._split(params, chosen, binoms)
        for name, old in list(params.items()):
            optimizer = optimizers[name]
            new = torch.nn.Parameter(torch.cat([old, old[chosen]]), requires_grad=old.requires_grad)
            grown = {k: torch.cat([v, torch.zeros_like(v[chosen])]) for k, v in _per_gaussian(optimizer, old).items()}
            if old in optimizer.state:
                optimizer.state[new] = optimizer.state.pop(old) | grown
            optimizer.param_groups[0]["params"] = [new]
            params[name] = new
        return more

    def _split(self, params: Parameters, chosen: Tensor, binoms: Tensor) -> None:
        # each of `chosen` will be split into several gaussians that together look the same
        opacities, scales = params["opacities"][chosen].sigmoid(), params["scales"][chosen].exp()
        ratios = torch.bincount(chosen)[chosen] + 1
        opacities, scales = compute_relocation(opacities, scales, ratios, binoms)
        most = 1 - torch.finfo(torch.float32).eps
        params["opacities"][chosen] = opacities.clamp(self.min_opacity, most).logit()
        params["scales"][chosen] = scales.log()


def _per_gaussian(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
    # the optimiser's moments, without its step count
    state = optimizer.state.get(parameter, {})
    return {k: v for k, v in state.items() if torch.is_tensor(v) and v.shape == parameter.shape}


def compute_relocation(
    opacities: Tensor,  # [N] or [N, 1]
    scales: Tensor,  # [N, 3]
    ratios: Tensor,  # [N], integers
    binoms: Tensor,  # [n_max, n_max]
) -> tuple[Tensor, Tensor]:
    """Return opacities and scales of gaussians that are each split into `ratios` equal ones (equation 9 of the paper).

    Equals `gsplat.relocation.compute_relocation`, with its sum over the binomial coefficients C(0, k) ... C(n - 1, k)
    written as C(n, k + 1), and in float64, because the sum alternates.
    """
    n = ratios.clamp(1, len(binoms)).long()
    old, k = opacities.flatten().double(), torch.arange(len(binoms), device=binoms.device)
    new = 1 - (1 - old) ** (1 / n)
    # C(n, k + 1) = C(n - 1, k) * n / (k + 1); zero where k >= n, as the table is
    choose = binoms.double()[n - 1] * n[:, None] / (k + 1)
    total = (choose * (-1.0) ** k / (k + 1.0).sqrt() * new[:, None] ** (k + 1)).sum(-1)
    return new.to(opacities).reshape(opacities.shape), (old / total).to(scales)[:, None] * scales
