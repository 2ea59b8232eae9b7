"""`render` draws splats from a view."""

import torch
from raster_scenes import Scene, random_scene

from nifi_ns.rasterize import rasterization, render
from nifi_ns.splats import Splats
from nifi_ns.views import View


def _splats(scene: Scene) -> Splats:
    return Splats(scene.means, scene.scales.log(), scene.quats, torch.logit(scene.opacities), scene.colors)


def _views(scene: Scene) -> list[View]:
    size = scene.width, scene.height
    return [View(f"{i}", v, K, *size) for i, (v, K) in enumerate(zip(scene.viewmats, scene.Ks, strict=True))]


def test_render_returns_what_rasterization_draws() -> None:
    scene = random_scene(60)
    image, alpha, _ = rasterization(**scene.arguments(render_mode="RGB+ED"))
    drawn = render(_splats(scene), _views(scene)[0], depth=True)
    assert torch.allclose(drawn.rgb, image[0, ..., :3], atol=1e-5)
    assert torch.allclose(drawn.alpha, alpha[0], atol=1e-5)
    assert drawn.depth is not None
    assert torch.allclose(drawn.depth, image[0, ..., 3:], atol=1e-3)
    assert render(_splats(scene), _views(scene)[0]).depth is None


def test_render_is_differentiable_in_all_tensors_of_the_splats() -> None:
    splats = _splats(random_scene(60))
    tensors = [splats.means, splats.scales, splats.quats, splats.opacities, splats.sh]
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    render(Splats(*leaves), _views(random_scene(1))[0], background=torch.ones(3)).rgb.square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_render_with_a_lower_sh_degree() -> None:
    splats, (view,) = _splats(random_scene(60)), _views(random_scene(1))
    assert torch.equal(render(splats, view, sh_degree=1).rgb, render(splats.with_sh_degree(1), view).rgb)
    assert not torch.allclose(render(splats, view, sh_degree=1).rgb, render(splats, view).rgb, atol=1e-2)


def test_render_over_a_background() -> None:
    splats, (view,), white = _splats(random_scene(60)), _views(random_scene(1)), torch.ones(3)
    black, on_white = render(splats, view), render(splats, view, background=white)
    assert torch.allclose(on_white.rgb, black.rgb + 1 - black.alpha, atol=1e-6)
