"""Densification: gsplat's two strategies behind splatfacto's interface, both with a cap on the number of gaussians."""

from dataclasses import dataclass
from typing import Any, Literal

from gsplat.strategy import DefaultStrategy

from nifi_ns.rasterize.mcmc import TorchMCMCStrategy


@dataclass
class CappedDefaultStrategy(DefaultStrategy):
    """Gsplat's default strategy with a cap: at `cap_max` gaussians it stops growing, but still prunes and resets."""

    cap_max: int = 1_000_000

    def _grow_gs(self, params: Any, optimizers: Any, state: Any, step: int) -> tuple[int, int]:
        room = self.cap_max - len(params["means"])
        if room <= 0:
            return 0, 0
        threshold = self.grow_grad2d
        gradients = state["grad2d"] / state["count"].clamp_min(1)
        if int((gradients > threshold).sum()) > room:  # the gaussians with the largest gradients grow
            self.grow_grad2d = float(gradients.topk(room + 1).values[-1])
        try:
            return super()._grow_gs(params, optimizers, state, step)
        finally:
            self.grow_grad2d = threshold


@dataclass
class SplatfactoMCMCStrategy(TorchMCMCStrategy):
    """The MCMC strategy with the attribute and the call that splatfacto expects of a strategy."""

    absgrad: bool = False

    def initialize_state(self, scene_scale: float = 1.0) -> dict[str, Any]:
        """Return the initial state; MCMC does not use the scene scale."""
        del scene_scale
        return super().initialize_state()

    def step_post_backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: Any, optimizers: Any, state: Any, step: int, info: Any, packed: bool = False
    ) -> None:
        """Do what gsplat's does, with the means' learning rate read from its optimizer."""
        del packed
        lr = optimizers["means"].param_groups[0]["lr"]
        super().step_post_backward(params, optimizers, state, step, info, lr)


def densification(
    kind: Literal["default", "mcmc"], default: DefaultStrategy, cap: int
) -> CappedDefaultStrategy | SplatfactoMCMCStrategy:
    """The strategy `kind`, scheduled like `default`, the one splatfacto built from its config."""
    if kind == "mcmc":
        return SplatfactoMCMCStrategy(
            cap_max=cap,
            refine_start_iter=default.refine_start_iter,
            refine_stop_iter=default.refine_stop_iter,
            refine_every=default.refine_every,
        )
    return CappedDefaultStrategy(**{**vars(default), "cap_max": cap, "verbose": False})
