"""Our kernels agree with gsplat's, and `rasterization` works on a GPU (where gsplat first compiles its kernels)."""

from typing import Any

import pytest
import torch
from raster_scenes import Scene, draw, random_scene, relative_errors

from nifi_ns.rasterize import rasterization

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]


def _to_gpu(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cuda() if torch.is_tensor(value) else value for name, value in arguments.items()}


def _on_gpu(scene: Scene) -> dict[str, torch.Tensor]:
    def rasterize(**arguments: Any):
        image, alpha, _ = rasterization(**_to_gpu(arguments))
        return image.cpu(), alpha.cpu()

    return draw(rasterize, scene)


@pytest.mark.parametrize("rasterize_mode", ["classic", "antialiased"])
@pytest.mark.parametrize("render_mode", ["RGB", "RGB+ED"])
def test_kernels_agree_with_gsplat(render_mode: str, rasterize_mode: str) -> None:
    """Except in the tails: gsplat 1.4.0 cuts them at 3 sigma at tile borders, an error of about 1e-2 in a pixel."""
    scene = random_scene(views=2, render_mode=render_mode, rasterize_mode=rasterize_mode)
    scene = scene.but(opacities=scene.opacities * 0.3)  # up to 0.35, alpha is below 1 / 255 at 3 sigma
    errors = relative_errors(draw(rasterization, scene), _on_gpu(scene))
    assert max(errors.values()) <= 1e-3, errors


def test_opaque_scenes_agree_with_gsplat_except_in_the_tails() -> None:
    errors = relative_errors(draw(rasterization, random_scene()), _on_gpu(random_scene()))
    assert errors["image"] <= 1e-2
    assert max(errors.values()) <= 5e-2, errors


def test_densification_info_on_a_gpu() -> None:
    scene = random_scene(30)
    image, _, info = rasterization(**_to_gpu(scene.arguments(means=scene.means.requires_grad_(), absgrad=True)))
    info["means2d"].retain_grad()
    image.square().sum().backward()
    assert (info["means2d"].absgrad >= info["means2d"].grad.abs() - 1e-5).all()
    assert info["means2d"].shape == (1, 30, 2)
