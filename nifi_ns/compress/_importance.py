"""How much each gaussian matters in the pictures: what pruning and precision go by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nifi_ns.novel_views import between
from nifi_ns.rasterize import render
from nifi_ns.splats import Splats
from nifi_ns.views import View


def spread(views: Sequence[View], count: int) -> list[View]:
    """`count` of the views, evenly spread over their order; all of them if there are no more."""
    count = min(count, len(views))
    return [views[i * len(views) // count] for i in range(count)]


def judging_views(views: Sequence[View], count: int) -> list[View]:
    """Up to `count` cameras to judge by: the views as `spread` has them, and if there are fewer as many between them.

    They have no photos. What no photo shows may still be looked at. More than one a view would be between far ones,
    where nobody looks from.
    """
    cameras = [replace(view, image=None) for view in spread(views, count)]
    return cameras + between(cameras, min(count - len(cameras), len(cameras)), 1.0)


@dataclass(frozen=True)
class Importance:
    """How much the pictures change with each of N gaussians, as energies: sums over pixels, channels and views."""

    fading: Tensor
    """[N] `(d image / d log alpha)^2`: what pruning goes by."""
    changing: Tensor
    """[N] geometric mean of the energies of growing, `(d image / d log scale)^2`, and of moving in units of the longest
    axis, each over the three axes: what precision goes by."""

    def __getitem__(self, index: Tensor) -> "Importance":
        """That of the gaussians selected by `index`."""
        return Importance(self.fading[index], self.changing[index])


Judge = Callable[[Splats], Importance]
"""Tells the importance of splats; the views that it looks at are its own."""


def importance(
    splats: Splats, views: Sequence[View], *, background: Tensor | None = None, antialiased: bool = False, seed: int = 0
) -> Importance:
    """The importance of each gaussian in some views.

    Unlike the sum of its blending weights, the energy of fading knows that a gaussian of the colour of what lies behind
    it will not be missed. All energies are of the diagonal of a Gauss-Newton Hessian (compare PUP 3D-GS, Hanson et al.
    2025), estimated in one backward pass a view: with random signs, the square of the gradient of `sum(sign * image)`
    has it as expectation.
    """
    generator = torch.Generator(device=splats.device).manual_seed(seed)
    alphas = splats.opacities.detach().sigmoid().clamp(1e-5, 0.99)  # beyond, gradients are clipped
    fading, growing, moving = (torch.zeros_like(alphas) for _ in range(3))
    longest = splats.scales.detach().amax(dim=1).exp()
    for view in views:
        with torch.enable_grad():
            gain = torch.ones_like(alphas, requires_grad=True)
            scales, means = (x.detach().requires_grad_() for x in (splats.scales, splats.means))
            changed = replace(splats, opacities=torch.logit(alphas * gain), scales=scales, means=means)
            image = render(changed, view, background=background, antialiased=antialiased).rgb
            signs = torch.randint(0, 2, image.shape, generator=generator, device=image.device) * 2 - 1
            gradients = torch.autograd.grad((image * signs).sum(), [gain, scales, means])
        fading += gradients[0].square()
        growing += gradients[1].square().sum(dim=1)
        moving += gradients[2].square().sum(dim=1) * longest.square()
    return Importance(fading, growing.sqrt() * moving.sqrt())
