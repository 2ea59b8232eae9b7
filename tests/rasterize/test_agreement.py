"""The CPU kernels match the dense float64 reference in images and gradients, to a relative error of 1e-3."""

import pytest
import torch
from raster_scenes import Scene, draw, random_scene, relative_errors

from nifi_ns.rasterize import rasterization, reference

TOLERANCE = 1e-3


def assert_agrees(scene: Scene, tolerance: float = TOLERANCE) -> None:
    errors = relative_errors(draw(rasterization, scene), draw(reference.rasterization, scene, torch.float64))
    assert max(errors.values()) <= tolerance, errors


@pytest.mark.parametrize("rasterize_mode", ["classic", "antialiased"])
@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
def test_spherical_harmonics(sh_degree: int, rasterize_mode: str) -> None:
    assert_agrees(random_scene(sh_degree=sh_degree, rasterize_mode=rasterize_mode))


@pytest.mark.parametrize("render_mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
def test_render_modes(render_mode: str) -> None:
    assert_agrees(random_scene(render_mode=render_mode, rasterize_mode="antialiased"))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 11])
def test_colors_of_any_number_of_channels(channels: int) -> None:
    assert_agrees(random_scene(channels=channels))


def test_several_cameras() -> None:
    assert_agrees(random_scene(views=3, render_mode="RGB+ED"))


def test_colors_per_camera() -> None:
    scene = random_scene(views=2)
    assert_agrees(scene.but(colors=torch.stack([scene.colors, scene.colors.flip(0)])))
    scene = random_scene(views=2, channels=3)
    assert_agrees(scene.but(colors=torch.stack([scene.colors, -scene.colors])))


def test_many_gaussians_on_several_threads() -> None:
    scene = random_scene(4200)
    scene = scene.but(width=32, height=24, Ks=scene.Ks / torch.tensor([[1.6], [1.6], [1.0]]))
    assert_agrees(scene.but(scales=scene.scales / 4))


def test_gaussians_behind_the_camera_and_in_its_plane() -> None:
    scene = random_scene()
    depths = torch.linspace(-3, 3, len(scene))
    depths[::20] = 0.0
    means = torch.cat([scene.means[:, :2] * 0.3, depths[:, None]], dim=-1)
    assert_agrees(scene.but(means=means, scales=scene.scales * 0.1))


def test_near_and_far_planes() -> None:
    assert_agrees(random_scene(near_plane=3.5, far_plane=4.5))


def test_gaussians_partly_off_screen() -> None:
    """Their centres are where the linearisation is clamped, but they reach into the image."""
    scene = random_scene()
    assert_agrees(scene.but(means=scene.means * torch.tensor([6.0, 6.0, 1.0]), scales=scene.scales * 4))


def test_gaussians_far_off_screen_are_not_drawn() -> None:
    scene = random_scene()
    scene = scene.but(means=scene.means + torch.tensor([1e4, 0, 0]))
    drawn = draw(rasterization, scene)
    assert all(not tensor.any() for tensor in drawn.values())


@pytest.mark.parametrize("small", [1e-3, 1e-5])
def test_needles_and_discs(small: float) -> None:
    scene = random_scene()
    scales = scene.scales.clone()
    scales[::2, 0] = small
    scales[::3, 1] = small
    scales[1::5] = small
    assert_agrees(scene.but(scales=scales))
    assert_agrees(scene.but(scales=scales, options=scene.options | {"rasterize_mode": "antialiased"}))


def test_long_needles_across_the_screen() -> None:
    scene = random_scene()
    scales = scene.scales * torch.tensor([20.0, 0.2, 0.2])
    assert_agrees(scene.but(scales=scales, opacities=scene.opacities * 0.3))


def test_zero_scales() -> None:
    scene = random_scene()
    scales = scene.scales * (torch.arange(len(scene)) % 2)[:, None]
    assert_agrees(scene.but(scales=scales))
    # a point has no area: with antialiasing it is invisible, and its gradients must not be NaN
    drawn = draw(rasterization, scene.but(scales=scales, options=scene.options | {"rasterize_mode": "antialiased"}))
    assert all(torch.isfinite(tensor).all() for tensor in drawn.values())


def test_opacities_of_zero_and_one() -> None:
    scene = random_scene()
    assert_agrees(scene.but(opacities=(scene.opacities > 0.5).float()))


def test_an_opaque_stack_stops_early() -> None:
    """Hundreds of gaussians lie behind saturated pixels."""
    scene = random_scene(600)
    assert_agrees(scene.but(opacities=torch.full_like(scene.opacities, 0.97), scales=scene.scales * 4))


def test_gaussians_of_equal_depth_keep_their_order() -> None:
    scene = random_scene(60)
    means = scene.means[torch.arange(60) // 2]  # as after densification: pairs at one place
    identity = torch.eye(4)[None]
    assert_agrees(scene.but(means=means, viewmats=identity))


def test_a_camera_inside_huge_gaussians() -> None:
    scene = random_scene(40)
    assert_agrees(scene.but(scales=scene.scales * 100, opacities=scene.opacities * 0.2))


def test_a_single_gaussian() -> None:
    assert_agrees(random_scene(1))


def test_an_image_smaller_than_a_tile() -> None:
    scene = random_scene()
    assert_agrees(scene.but(width=5, height=3, Ks=scene.Ks / torch.tensor([[10.0], [10.0], [1.0]])))


def test_eps2d() -> None:
    assert_agrees(random_scene(eps2d=0.05, rasterize_mode="antialiased"))


def test_skewed_view_matrices() -> None:
    """Camera optimisers may pass matrices that are not exact rotations."""
    scene = random_scene()
    skew = torch.eye(4)[None] + 0.05 * torch.randn(1, 4, 4) * torch.tensor([1.0, 1, 1, 0])[:, None]
    assert_agrees(scene.but(viewmats=skew @ scene.viewmats))
