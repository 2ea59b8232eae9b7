"""How much each gaussian matters in the images: the criterion of pruning and of precision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nifi_ns.novel_views import between
from nifi_ns.rasterize import render
from nifi_ns.splats import Splats
from nifi_ns.views import View, spaced_views


def importance_views(views: Sequence[View], count: int) -> list[View]:
    """Return up to `count` cameras to measure importance in: evenly spaced views without photos, and some between.

    Gaussians that no photo shows may be seen from between the photos. There is at most one such camera for each view:
    more would lie between distant views, where nobody looks from.
    """
    cameras = [replace(view, image=None) for view in spaced_views(views, count)]
    return cameras + between(cameras, min(count - len(cameras), len(cameras)), 1.0)


@dataclass(frozen=True)
class Importance:
    """Sensitivity of the images to each of N gaussians: squared derivatives, summed over pixels, channels and views."""

    opacity_sensitivity: Tensor
    """[N] sum of `(d image / d log alpha)^2`: the criterion of pruning."""
    position_sensitivity: Tensor
    """[N] geometric mean of the sums of `(d image / d log scale)^2` and of `(d image / d mean)^2` with means in units
    of the longest axis, each over the three axes: the criterion of precision."""

    def __getitem__(self, index: Tensor) -> "Importance":
        """Return the sensitivities of the gaussians selected by `index`."""
        return Importance(self.opacity_sensitivity[index], self.position_sensitivity[index])


ImportanceMeasure = Callable[[Splats], Importance]
"""Returns the importance of splats, in views of its own."""


def measure_importance(
    splats: Splats, views: Sequence[View], *, background: Tensor | None = None, antialiased: bool = False, seed: int = 0
) -> Importance:
    """Estimate the importance of each gaussian in some views, by one backward pass for each.

    The sensitivities are the diagonal of a Gauss-Newton Hessian (compare PUP 3D-GS, Hanson et al. 2025): for random
    signs it is the expectation of the squared gradient of `sum(sign * image)`. Unlike the sum of blending weights,
    sensitivity to opacity is low for a gaussian that has the colour of what lies behind it.

    Args:
        splats: the gaussians.
        views: cameras; their photos are ignored.
        background: [3] the colour behind everything; black if None.
        antialiased: whether the splats are drawn antialiased.
        seed: for the signs.
    """
    generator = torch.Generator(device=splats.device).manual_seed(seed)
    alphas = splats.opacities.detach().sigmoid().clamp(1e-5, 0.99)  # beyond, gradients are clipped
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
