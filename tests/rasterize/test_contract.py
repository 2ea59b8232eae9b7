"""What callers of `rasterization` rely on besides the image: info, absgrad, errors, threads, light imports."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from raster_scenes import Scene, draw, random_scene, relative_errors

import nifi_ns.rasterize
from nifi_ns.errors import NifiError
from nifi_ns.rasterize import _threads, rasterization, reference


def _rasterize(scene: Scene, **options: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    return rasterization(**scene.arguments(**options))


def test_absgrad_is_the_sum_of_absolute_gradients() -> None:
    scene = random_scene(12).but(width=21, height=19)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(1, 19, 21, 3, generator=generator)
    means = scene.means.clone().requires_grad_()
    image, _, info = _rasterize(scene.but(means=means), absgrad=True)
    info["means2d"].retain_grad()
    (image * weights).sum().backward(retain_graph=True)
    found, total = info["means2d"].absgrad.clone(), info["means2d"].grad.clone()

    expected = torch.zeros_like(found)
    for y in range(19):
        for x in range(21):
            (gradient,) = torch.autograd.grad((image * weights)[:, y, x].sum(), info["means2d"], retain_graph=True)
            expected += gradient.abs()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert (found > total.abs() + 1e-3).any(), "this test needs a gaussian whose gradients cancel"


def test_absgrad_is_not_set_unless_requested() -> None:
    scene = random_scene(12)
    image, _, info = _rasterize(scene.but(means=scene.means.clone().requires_grad_()))
    image.sum().backward()
    assert not hasattr(info["means2d"], "absgrad")


def test_means2d_are_in_the_graph() -> None:
    scene = random_scene(30, views=2)
    image, _, info = _rasterize(scene.but(means=scene.means.clone().requires_grad_()))
    info["means2d"].retain_grad()
    image.square().sum().backward()
    assert info["means2d"].shape == (2, 30, 2)
    assert info["means2d"].grad.abs().sum() > 0


@pytest.mark.parametrize(("version", "shape"), [("1.4.0", (2, 30)), ("1.5.3", (2, 30, 2)), ("2.0", (2, 30, 2))])
def test_radii_have_the_shape_that_the_installed_gsplat_expects(
    version: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: version)
    nifi_ns.rasterize._two_radii.cache_clear()
    try:
        _, _, info = _rasterize(random_scene(30, views=2))
    finally:
        nifi_ns.rasterize._two_radii.cache_clear()
    assert info["radii"].shape == shape
    assert not info["radii"].is_floating_point()


def test_every_gaussian_that_contributes_to_the_image_has_radii() -> None:
    scene = random_scene(80, channels=80).but(colors=torch.eye(80))
    weights, _, info = _rasterize(scene)
    radii = info["radii"][0].reshape(80, -1).amax(-1)
    assert ((weights[0].sum((0, 1)) > 0) <= (radii > 0)).all()
    assert (radii > 0).any()


def test_zero_gaussians() -> None:
    scene = random_scene(0, views=2, render_mode="RGB+ED")
    image, alpha, info = _rasterize(scene.but(width=40, height=30, means=scene.means.requires_grad_()))
    image.sum().backward()
    assert image.shape == (2, 30, 40, 4)
    assert not image.any()
    assert not alpha.any()
    assert info["means2d"].shape == (2, 0, 2)


def test_one_broken_gaussian_does_not_affect_the_others() -> None:
    scene = random_scene(20)
    rest = torch.arange(20) != 4
    expected = draw(rasterization, scene.but(**{k: getattr(scene, k)[rest] for k in _PER_GAUSSIAN}))
    for name in _PER_GAUSSIAN[:4]:
        broken = getattr(scene, name).clone()
        broken[4] = torch.nan
        found = draw(rasterization, scene.but(**{name: broken}))
        assert torch.equal(found["image"], expected["image"])
        assert torch.equal(found["d means"][rest], expected["d means"])


_PER_GAUSSIAN = ("means", "quats", "scales", "opacities", "colors")


def test_inputs_need_not_be_contiguous() -> None:
    scene = random_scene(50)
    turned = {k: getattr(scene, k).mT.contiguous().mT for k in ("means", "quats", "scales", "colors", "viewmats")}
    turned["opacities"] = torch.stack([scene.opacities] * 2, dim=-1)[:, 0]
    assert not any(tensor.is_contiguous() for tensor in turned.values())
    expected = draw(rasterization, scene)

    leaves = {name: tensor.detach().requires_grad_() for name, tensor in turned.items()}
    image, alpha, _ = _rasterize(scene.but(**leaves))
    assert torch.equal(image, expected["image"])
    generator = torch.Generator().manual_seed(3)
    loss = sum((out * torch.randn(out.shape, generator=generator)).sum() for out in (image, alpha))
    for (name, _), gradient in zip(leaves.items(), torch.autograd.grad(loss, list(leaves.values())), strict=True):  # type: ignore[arg-type]
        assert torch.equal(gradient, expected[f"d {name}"]), name


def test_the_background_is_visible_where_nothing_covers_it() -> None:
    scene, background = random_scene(30, render_mode="RGB+ED"), torch.tensor([[0.2, 0.5, 0.9]])
    image, alpha, _ = _rasterize(scene)
    behind, same_alpha, _ = _rasterize(scene, backgrounds=background)
    assert torch.equal(alpha, same_alpha)
    assert torch.allclose(behind[..., :3], image[..., :3] + (1 - alpha) * background)
    assert torch.equal(behind[..., 3:], image[..., 3:])


def test_radius_clip_removes_small_gaussians() -> None:
    scene = random_scene(80, channels=80).but(colors=torch.eye(80))
    _, _, info = _rasterize(scene)
    radii = info["radii"][0].reshape(80, -1).amax(-1)
    clip = float(radii[radii > 0].float().median())
    weights, _, _ = _rasterize(scene, radius_clip=clip)
    shown = weights[0].sum((0, 1)) > 0
    assert not shown[radii <= clip].any()
    assert shown[radii > clip].any()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("means", torch.zeros(20, 2)),
        ("quats", torch.zeros(20, 3)),
        ("scales", torch.zeros(19, 3)),
        ("opacities", torch.zeros(20, 1)),
        ("colors", torch.zeros(20, 9, 3)),
        ("viewmats", torch.eye(4)),
        ("Ks", torch.eye(4)[None]),
    ],
)
def test_a_wrong_shape_is_refused_by_name(name: str, wrong: torch.Tensor) -> None:
    with pytest.raises(AssertionError, match=rf"^{name}: expected .* got \["):
        _rasterize(random_scene(20).but(**{name: wrong}))


def test_cuda_only_options_are_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="packed"):
        _rasterize(random_scene(5), packed=True)
    with pytest.raises(ValueError, match="sh_degree 4"):
        _rasterize(random_scene(5), colors=torch.zeros(5, 25, 3), sh_degree=4)
    with pytest.raises(ValueError, match="absgrad with 5 channels"):
        _rasterize(random_scene(5, channels=5), absgrad=True)


def test_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = draw(rasterization, random_scene(5000))
    for threads in ("1", "3"):
        monkeypatch.setenv("NIFI_RASTER_THREADS", threads)
        _threads.num_threads.cache_clear()
        found = draw(rasterization, random_scene(5000))
        assert torch.equal(found["image"], expected["image"])
        assert torch.equal(found["d means"], expected["d means"])
    monkeypatch.setenv("NIFI_RASTER_THREADS", "many")
    _threads.num_threads.cache_clear()
    with pytest.raises(NifiError, match="NIFI_RASTER_THREADS is 'many'"):
        _threads.num_threads()
    monkeypatch.undo()
    _threads.num_threads.cache_clear()


def test_float64_inputs_are_rendered_in_float32() -> None:
    scene = random_scene(40)
    expected, found = draw(rasterization, scene), draw(rasterization, scene, torch.float64)
    assert found["image"].dtype == torch.float32
    assert found["d means"].dtype == torch.float64
    assert max(relative_errors(found, expected).values()) < 1e-5


def test_renders_from_several_threads_at_once_are_bitwise_equal() -> None:
    """A viewer renders while a trainer trains."""
    scenes = [random_scene(5000, seed=seed) for seed in range(3)]
    scenes = [scene.but(scales=scene.scales / 4) for scene in scenes]
    expected = [draw(rasterization, scene) for scene in scenes]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda k: draw(rasterization, scenes[k % 3]), range(12)))
    for k, drawn in enumerate(found):
        for name, tensor in drawn.items():
            assert torch.equal(tensor, expected[k % 3][name]), name


def test_importing_loads_no_heavy_modules() -> None:
    code = "import sys, nifi_ns.rasterize; sys.exit(any(m in sys.modules for m in ('numba', 'gsplat', 'nerfstudio')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reference_gradients_match_finite_differences() -> None:
    """The reference itself is checked only here."""
    scene = random_scene(8, channels=3)
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats")
    tensors = [getattr(scene, name).double() for name in names]
    weights = torch.randn(1, 38, 53, 3, generator=torch.Generator().manual_seed(1)).double()

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        changed = dict(zip(names, inputs, strict=True))
        image, alpha = reference.rasterization(**scene.arguments(torch.float64, **changed))
        return (image * weights).sum() + (alpha * weights[..., :1]).sum()

    inputs = [tensor.requires_grad_() for tensor in tensors]
    gradients = torch.autograd.grad(loss(*inputs), inputs)
    for k, name in enumerate(names):
        step = 1e-6 * torch.randn(inputs[k].shape, generator=torch.Generator().manual_seed(k)).double()
        moved = [loss(*(t + sign * step if j == k else t for j, t in enumerate(inputs))) for sign in (1, -1)]
        assert torch.isclose((gradients[k] * step).sum(), (moved[0] - moved[1]) / 2, rtol=1e-3), name


@pytest.mark.parametrize("rasterize_mode", ["classic", "antialiased"])
def test_the_tiled_reference_equals_the_dense_one(rasterize_mode: str) -> None:
    scene = random_scene(views=2, render_mode="RGB+ED", rasterize_mode=rasterize_mode)
    tiled = draw(partial(reference.rasterization, tiled=True), scene, torch.float64)
    assert max(relative_errors(tiled, draw(reference.rasterization, scene, torch.float64)).values()) < 1e-12


def test_the_reference_projects_and_shades_like_gsplat() -> None:
    from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci, _spherical_harmonics

    scene = random_scene(300)
    means, quats, scales = (t.double() for t in (scene.means, scene.quats, scene.scales))
    viewmat, K, size = scene.viewmats[0].double(), scene.Ks[0].double(), (scene.width, scene.height)
    means = means[(means @ viewmat[2, :3] + viewmat[2, 3]) > 0.01]
    quats, scales = quats[: len(means)], scales[: len(means)]
    covariances, _ = _quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    assert covariances is not None
    _, *theirs = _fully_fused_projection(
        means, covariances, viewmat[None], K[None], *size, eps2d=0.3, calc_compensations=True
    )
    means2d, depths, conics, compensations = (part[0] for part in theirs if part is not None)
    for ours, expected in zip(
        reference.project(means, quats, scales, viewmat, K, *size, 0.3),
        (means2d, depths, conics, compensations),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)
    coefficients = scene.colors[: len(means)].double()
    for degree in range(4):
        basis = reference.sh_basis(degree, means)
        shaded = (basis[..., None] * coefficients[:, : basis.shape[1]]).sum(dim=1)
        torch.testing.assert_close(shaded, _spherical_harmonics(degree, means, coefficients))
