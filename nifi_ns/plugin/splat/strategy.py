"""Densification: gsplat's two strategies with splatfacto's interface and a limit on the number of gaussians."""

from dataclasses import dataclass
from typing import Any, Literal

from gsplat.strategy import DefaultStrategy

from nifi_ns.rasterize.mcmc import TorchMCMCStrategy


@dataclass
class CappedDefaultStrategy(DefaultStrategy):
    """gsplat's default strategy with a limit: at `cap_max` gaussians it stops growing, but still prunes and resets."""

    cap_max: int = 1_000_000

    def _grow_gs(self, params: Any, optimizers: Any, state: Any, step: int) -> tuple[int, int]:
        room = self.cap_max - len(params["means"])
        if room <= 0:
            return 0, 0
        threshold = self.grow_grad2d
        gradients = state["grad2d"] / state["count"].clamp_min(1)
        if int((gradients > threshold).sum()) > room:  # only the gaussians with the largest gradients grow
            self.grow_grad2d = float(gradients.topk(room + 1).values[-1])
        try:
            return super()._grow_gs(params, optimizers, state, step)
        finally:
            self.grow_grad2d = threshold


@dataclass
class SplatfactoMCMCStrategy(TorchMCMCStrategy):
    """The MCMC strategy with the attribute and the signature that splatfacto expects."""

    absgrad: bool = False

    def initialize_state(self, scene_scale: float = 1.0) -> dict[str, Any]:
        """Return the initial state. MCMC ignores the scene scale."""
        del scene_scale
        return super().initialize_state()

    def step_post_backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: Any, optimizers: Any, state: Any, step: int, info: Any, packed: bool = False
    ) -> None:
        """Relocate, add and perturb gaussians, with the means' learning rate read from its optimiser."""
        del packed
        lr = optimizers["means"].param_groups[0]["lr"]
        super().step_post_backward(params, optimizers, state, step, info, lr)


def densification(
    kind: Literal["default", "mcmc"], default: DefaultStrategy, cap: int
) -> CappedDefaultStrategy | SplatfactoMCMCStrategy:
    """Return the strategy `kind`, with the schedule of `default`, which splatfacto built from its config."""
    if kind == "mcmc":
        return SplatfactoMCMCStrategy(
            cap_max=cap,
            refine_start_iter=default.refine_start_iter,
            refine_stop_iter=default.refine_stop_iter,
            refine_every=default.refine_every,
        )
    return CappedDefaultStrategy(**{**vars(default), "cap_max": cap, "verbose": False})
