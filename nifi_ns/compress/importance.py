"""How much the pictures would miss each gaussian: what pruning goes by."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nifi_ns.rasterize import render
from nifi_ns.splats import Splats
from nifi_ns.views import View


def spread(views: Sequence[View], count: int) -> list[View]:
    """`count` of the views, evenly spread over their order; all of them if there are no more."""
    count = min(count, len(views))
    return [views[i * len(views) // count] for i in range(count)]


def importance(
    splats: Splats, views: Sequence[View], *, background: Tensor | None = None, antialiased: bool = False, seed: int = 0
) -> Tensor:
    """[N] `sum over pixels and channels of (d image / d log alpha)^2`: the energy of the change when a gaussian fades.

    Unlike the sum of its blending weights this knows that a gaussian of the colour of what lies behind it will not be
    missed. It is the diagonal of a Gauss-Newton Hessian (compare PUP 3D-GS, Hanson et al. 2025), estimated in one
    backward pass a view: with random signs, the square of the gradient of `sum(sign * image)` has it as expectation.
    """
    generator = torch.Generator(device=splats.device).manual_seed(seed)
    alphas = splats.opacities.detach().sigmoid()
    energy = torch.zeros_like(alphas)
    for view in views:
        with torch.enable_grad():
            gain = torch.ones_like(alphas, requires_grad=True)
            faded = replace(splats, opacities=torch.logit(alphas * gain, eps=1e-6))
            image = render(faded, view, background=background, antialiased=antialiased).rgb
            signs = torch.randint(0, 2, image.shape, generator=generator, device=image.device) * 2 - 1
            (gradient,) = torch.autograd.grad((image * signs).sum(), gain)
        energy += gradient**2
    return energy
