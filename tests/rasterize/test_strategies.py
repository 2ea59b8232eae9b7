"""The densification strategies of the installed gsplat run on a CPU with our rasterizer's info."""

import math
from typing import Any

import pytest
import torch
from gsplat.cuda._torch_impl import _quat_scale_to_covar_preci
from gsplat.strategy import DefaultStrategy, MCMCStrategy, ops
from raster_scenes import random_scene

from nifi_ns.rasterize import rasterization
from nifi_ns.rasterize.mcmc import TorchMCMCStrategy, compute_relocation


class Training:
    """A few gaussians, their optimisers, and an image to fit."""

    def __init__(self, absgrad: bool = False) -> None:
        self.scene, self.absgrad = random_scene(150, channels=3, views=2), absgrad
        parameters = {
            "means": self.scene.means,
            "quats": self.scene.quats,
            "scales": self.scene.scales.log(),
            "opacities": torch.logit(self.scene.opacities),
            "colors": self.scene.colors,
        }
        self.params = torch.nn.ParameterDict({k: torch.nn.Parameter(v.clone()) for k, v in parameters.items()})
        self.optimizers: dict[str, Any] = {k: torch.optim.Adam([p], lr=1e-3) for k, p in self.params.items()}

    def step(self, strategy: Any, state: Any, step: int, **arguments: Any) -> None:
        p = self.params
        image, _, info = rasterization(
            *(p["means"], p["quats"], p["scales"].exp(), p["opacities"].sigmoid(), p["colors"]),
            *(self.scene.viewmats, self.scene.Ks, self.scene.width, self.scene.height),
            absgrad=self.absgrad,
        )
        strategy.step_pre_backward(p, self.optimizers, state, step, info)
        image.square().mean().backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        strategy.step_post_backward(p, self.optimizers, state, step, info, **arguments)


@pytest.mark.parametrize("absgrad", [False, True])
def test_default_strategy_densifies_and_prunes(absgrad: bool) -> None:
    training = Training(absgrad)
    strategy = DefaultStrategy(
        refine_start_iter=0,
        refine_every=2,
        grow_grad2d=1e-7,
        prune_opa=0.1,
        absgrad=absgrad,
        refine_scale2d_stop_iter=9,
    )
    strategy.check_sanity(training.params, training.optimizers)
    state = strategy.initialize_state(scene_scale=1.0)
    training.step(strategy, state, step=1)
    seen, grown = state["count"].clone(), state["grad2d"].clone()
    assert ((seen > 0) == (grown > 0)).float().mean() > 0.9
    training.step(strategy, state, step=2)
    assert len(training.params["means"]) != 150
    assert torch.sigmoid(training.params["opacities"]).min() >= 0.1
    training.step(strategy, state, step=3)  # training continues with the new gaussians


def trained(strategy: MCMCStrategy) -> Training:
    """Return the result of two steps, the first of which relocates and adds gaussians."""
    torch.manual_seed(0)
    training = Training()
    training.params["opacities"].data[:20] = -9.0
    strategy.check_sanity(training.params, training.optimizers)
    state = strategy.initialize_state()
    training.step(strategy, state, step=1, lr=1e-3)
    training.step(strategy, state, step=2, lr=1e-3)
    return training


MCMC: dict[str, Any] = {"cap_max": 155, "refine_start_iter": 0, "refine_every": 1, "noise_lr": 1.0}


def test_mcmc_strategy_relocates_and_grows_to_its_cap() -> None:
    before = Training().params["means"][20:].detach()
    training = trained(TorchMCMCStrategy(**MCMC))
    assert len(training.params["means"]) == 155
    assert torch.sigmoid(training.params["opacities"]).min() > 0.004
    assert not torch.equal(training.params["means"][20:150], before)
    assert all(torch.isfinite(parameter).all() for parameter in training.params.values())


def test_mcmc_strategy_equals_gsplat(monkeypatch: pytest.MonkeyPatch) -> None:
    """gsplat's strategy runs with torch in place of its two CUDA-only kernels."""
    ours = trained(TorchMCMCStrategy(**MCMC))
    monkeypatch.setattr(ops, "quat_scale_to_covar_preci", _quat_scale_to_covar_preci)
    monkeypatch.setattr(ops, "compute_relocation", compute_relocation)
    theirs = trained(MCMCStrategy(**MCMC))
    for name, parameter in theirs.params.items():
        torch.testing.assert_close(ours.params[name], parameter)
        moments = (training.optimizers[name].state[training.params[name]] for training in (ours, theirs))
        torch.testing.assert_close(*moments)


def test_relocation_is_equation_9() -> None:
    """Checked against the paper's double sum, and for ratios beyond the table against gsplat."""

    opacities, scales = torch.tensor([0.01, 0.5, 0.9, 0.99, 0.3]), torch.rand(5, 3)
    ratios, n_max = torch.tensor([1, 2, 5, 30, 80]), 51
    binoms = torch.tensor([[float(math.comb(n, k)) for k in range(n_max)] for n in range(n_max)])
    new_opacities, new_scales = compute_relocation(opacities, scales, ratios, binoms)
    for old, scale, ratio, new, new_scale in zip(opacities, scales, ratios, new_opacities, new_scales, strict=True):
        n = min(int(ratio), n_max)
        opacity = 1 - (1 - old.double()) ** (1 / n)
        total = sum(
            math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * opacity ** (k + 1)
            for i in range(1, n + 1)
            for k in range(i)
        )
        assert torch.isclose(new.double(), opacity)
        assert torch.allclose(new_scale.double(), old.double() / total * scale.double(), rtol=1e-5)
    assert compute_relocation(opacities[:, None], scales, ratios, binoms)[0].shape == (5, 1)
