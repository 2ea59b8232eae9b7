"""Importance: how strongly each gaussian affects the renders. It decides what to prune and how precisely to store."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nifi_ns.novel_views import between
from nifi_ns.rasterize import render
from nifi_ns.splats import Splats
from nifi_ns.views import View, spaced_views


def importance_views(views: Sequence[View], count: int) -> list[View]:
    """Return up to `count` cameras to measure importance in: evenly spaced views without photos, and cameras between.

    Some gaussians appear in no photo but are visible between photos. There is at most one camera between per view: more
    would lie between distant views, where users do not go.
    """
    cameras = [replace(view, image=None) for view in spaced_views(views, count)]
    return cameras + between(cameras, min(count - len(cameras), len(cameras)), 1.0)


@dataclass(frozen=True)
class Importance:
    """Sensitivity of renders to each of N gaussians: squared derivatives, summed over pixels, channels and views."""

    opacity_sensitivity: Tensor
    """[N] sum of `(d render / d log alpha)^2`, used for pruning."""
    position_sensitivity: Tensor
    """[N] geometric mean of two sums over the three axes, `(d render / d log scale)^2` and `(d render / d mean)^2` with
    means in units of the longest axis; used to choose the precision."""

    def __getitem__(self, index: Tensor) -> "Importance":
        """Return the sensitivities of the gaussians that `index` selects."""
        return Importance(self.opacity_sensitivity[index], self.position_sensitivity[index])


ImportanceMeasure = Callable[[Splats], Importance]
"""A function that measures the importance of splats in fixed views."""


def measure_importance(
    splats: Splats, views: Sequence[View], *, background: Tensor | None = None, antialiased: bool = False, seed: int = 0
) -> Importance:
    """Estimate the importance of each gaussian in some views, with one backward pass per view.

    The sensitivities are the diagonal of a Gauss-Newton Hessian (compare PUP 3D-GS, Hanson et al. 2025), estimated as
    the squared gradient of `sum(sign * render)` for random signs. Unlike the sum of blending weights, the sensitivity
    to opacity is low for a gaussian of the same colour as what lies behind it.

    Args:
        splats: the gaussians.
        views: cameras; their photos are ignored.
        background: [3] RGB colour behind the scene; black if None.
        antialiased: whether the splats are drawn antialiased.
        seed: seed for the signs.
    """
    generator = torch.Generator(device=splats.device).manual_seed(seed)
    alphas = splats.opacities.detach().sigmoid().clamp(1e-5, 0.99)  # gradients are clipped beyond
    to_opacity, to_scale, to_position = (torch.zeros_like(alphas) for _ in range(3))
    longest = splats.scales.detach().amax(dim=1).exp()
    for view in views:
        with torch.enable_grad():
            gain = torch.ones_like(alphas, requires_grad=True)
            scales, means = (x.detach().requires_grad_() for x in (splats.scales, splats.means))
            changed = replace(splats, opacities=torch.logit(alphas * gain), scales=scales, means=means)
            image = render(changed, view, background=background, antialiased=antialiased).rgb
            signs = torch.randint(0, 2, image.shape, generator=generator, device=image.device) * 2 - 1
            gradients = torch.autograd.grad((image * signs).sum(), [gain, scales, means])
        to_opacity += gradients[0].square()
        to_scale += gradients[1].square().sum(dim=1)
        to_position += gradients[2].square().sum(dim=1) * longest.square()
    return Importance(to_opacity, to_scale.sqrt() * to_position.sqrt())
