"""Reference residuals on scenes with known geometry: a painted wall, and a board in front of it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData
from torch import Tensor

from nifi_ns import metrics, rasterize
from nifi_ns.capture import CaptureSettings, make_capture
from nifi_ns.references import ReferenceBank, ReferenceSettings
from nifi_ns.references._stereo import ReferenceView, StereoSettings, Sweep, agree, chw, stack_references, sweep
from nifi_ns.references._warping import epipolar, lift, pixels
from nifi_ns.splats import SH_C0, Splats
from nifi_ns.views import View

CPU = torch.device("cpu")
WALL, BOARD = 5.0, 3.0
"""Distances from the plane z = 0, where the cameras are."""


def camera(name: str, x: float, *, y: float = 0.0, turn: float = 0.0, size: tuple[int, int] = (96, 72)) -> View:
    """Return a camera at (x, y, 0), facing +z, turned by `turn` about y."""
    c, s = math.cos(turn), math.sin(turn)
    rotation = torch.tensor([[c, 0.0, -s], [0.0, 1.0, 0.0], [s, 0.0, c]])
    viewmat = torch.eye(4)
    viewmat[:3, :3] = rotation
    viewmat[:3, 3] = -rotation @ torch.tensor([x, y, 0.0])
    width, height = size
    K = torch.tensor([[1.2 * width, 0.0, width / 2], [0.0, 1.2 * width, height / 2], [0.0, 0.0, 1.0]])
    return View(name, viewmat, K, width, height)


def paint(points: Tensor, shade: float) -> Tensor:
    """Return a colour pattern [..., 3] of world points, at wavelengths from 0.35 to 2."""
    x, y = points[..., 0], points[..., 1]
    waves = [torch.sin(a * x + b * y + k) for k, (a, b) in enumerate([(9, 4), (-8, 13), (17, 5)])]
    return (shade + 0.12 * torch.stack(waves, dim=-1) + 0.1 * torch.sin(3 * x - 2 * y)[..., None]).clamp(0, 1)


def truth(view: View, *, board: bool = True) -> tuple[Tensor, Tensor]:
    """Return colour [H, W, 3] and depth [H, W, 1] of a bright wall with a dark board of 1 x 1 in front of it."""
    ones = torch.ones(view.height, view.width, 1)
    start, towards = view.centre, lift(view, ones) - view.centre
    at_wall = start + towards * ((WALL - start[2]) / towards[..., 2:])
    at_board = start + towards * ((BOARD - start[2]) / towards[..., 2:])
    hit = (at_board[..., :2].abs() < 0.5).all(dim=-1, keepdim=True) & board
    points = torch.where(hit, at_board, at_wall)
    depth = ((points - start) @ view.viewmat[2, :3])[..., None]
    return torch.where(hit, paint(points, 0.3), paint(points, 0.7)), depth


def render(view: View) -> tuple[Tensor, Tensor]:
    """Return a poor render: correct depth, but plain colours."""
    _, depth = truth(view)
    return torch.where(depth < 4, 0.3, 0.7).expand(-1, -1, 3), depth


def photographed(view: View) -> View:
    return replace(view, image=truth(view)[0])


VIEWS = [photographed(camera(f"{i}", 0.25 * (i - 3), y=0.05 * (i % 2), turn=0.03 * (i - 3))) for i in range(7)]
HERE = camera("here", 0.1, y=0.02, turn=0.01)
RENDERED_DEPTH = StereoSettings(coarse=(), fine=(), rounds=0)
"""Uses depth as rendered."""


def error(image: Tensor, view: View = HERE) -> float:
    return (image - truth(view)[0]).square().mean().sqrt().item()


def test_lifting_and_projecting_a_pixel_are_inverse_and_agree_between_views() -> None:
    depth = torch.rand(72, 96, 1) + 2
    at, z = epipolar(HERE, VIEWS[0], pixels((72, 96), CPU)).project(depth)
    points = lift(HERE, depth)
    camera_points = points @ VIEWS[0].viewmat[:3, :3].T + VIEWS[0].viewmat[:3, 3]
    expected = camera_points @ VIEWS[0].K.T
    in_pixels = (at + 1) * torch.tensor([96, 72]) / 2
    torch.testing.assert_close(in_pixels, expected[..., :2] / expected[..., 2:], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(z, camera_points[..., 2:], atol=1e-5, rtol=1e-5)


def test_details_missing_from_the_render_are_restored_from_photos() -> None:
    rgb, depth = render(HERE)
    image, confidence = ReferenceBank(VIEWS, render).restore(HERE, rgb, depth)
    assert image.shape == (72, 96, 3) and confidence.shape == (72, 96, 1)
    assert error(image) < 0.35 * error(rgb)
    assert confidence.median() > 0.9


def test_nothing_is_added_outside_all_photos() -> None:
    """The view extends further to the right than any photo."""
    aside = camera("aside", 0.8, turn=0.25)
    rgb, depth = render(aside)
    image, confidence = ReferenceBank(VIEWS, render).restore(aside, rgb, depth)
    at = torch.stack([epipolar(aside, view, pixels((72, 96), CPU)).project(depth)[0] for view in VIEWS])
    unseen = (at.abs() > 1).any(dim=-1).all(dim=0)
    assert unseen.float().mean() > 0.05
    assert confidence[unseen].max() == 0
    torch.testing.assert_close(image[unseen], rgb[unseen])
    assert confidence[~unseen].mean() > 0.7


def test_the_board_does_not_smear_over_the_wall_behind_it() -> None:
    rgb, depth = render(HERE)
    image, _ = ReferenceBank(VIEWS, render).restore(HERE, rgb, depth)
    near_board = torch.nn.functional.max_pool2d((depth < 4).float()[None, ..., 0], 9, 1, 4)[0] > 0
    behind = near_board & (depth[..., 0] > 4)
    assert (image - truth(HERE)[0])[behind].abs().mean() < 0.6 * (rgb - truth(HERE)[0])[behind].abs().mean()


def bent(depth: Tensor) -> Tensor:
    return depth * (1 + 0.05 * torch.sin(torch.linspace(0, 6, depth.shape[1])))[None, :, None]


def stacked(depth_of: Callable[[Tensor], Tensor]) -> ReferenceView:
    found = []
    for view in VIEWS[1:6]:
        image, depth = truth(view)
        residual = image - render(view)[0]
        found.append(ReferenceView(view, chw(image), chw(residual), chw(depth_of(depth)), torch.ones(1, 3, 1, 1)))
    return stack_references(found)


def off(wrong: Tensor, right: Tensor) -> float:
    return ((wrong - right).abs() / right).mean().item()


@pytest.mark.parametrize(("own", "image_weight"), [("photo", 1.0), ("render", 0.1)])
def test_a_sweep_finds_the_depth_on_which_photos_agree(own: str, image_weight: float) -> None:
    image, depth = truth(HERE)
    image = image if own == "photo" else render(HERE)[0]
    swept = sweep(HERE, image, bent(depth), stacked(bent), StereoSettings(), Sweep(0.08, 11), image_weight=image_weight)
    assert off(swept, depth) < 0.6 * off(bent(depth), depth)


def test_views_with_correct_depths_correct_one_that_is_wrong() -> None:
    _, depth = truth(HERE)
    corrected = agree(HERE, bent(depth), stacked(lambda right: right), StereoSettings())
    assert off(corrected, depth) < 0.2 * off(bent(depth), depth)


def test_views_that_see_another_surface_have_no_weight() -> None:
    """The board hides the points where the other views claim to see the wall."""
    _, depth = truth(HERE)
    kept = agree(HERE, depth, stacked(lambda right: 3 * right), StereoSettings())
    torch.testing.assert_close(kept, depth, rtol=1e-4, atol=0)


def test_a_view_is_restored_although_all_depths_are_off_by_a_few_percent() -> None:
    """Only the combined effect of sweeps and agreement is visible in the picture."""
    rgb, _ = render(HERE)

    def poor(view: View) -> tuple[Tensor, Tensor]:
        image, depth = render(view)
        return image, bent(depth)

    near = ["2", "3", "4"]  # excluded, because depth hardly matters at such a short distance
    best, corrected, rendered = (
        error(ReferenceBank(VIEWS, draw, settings=settings).restore(HERE, rgb, draw(HERE)[1], exclude=near)[0])
        for draw, settings in (
            (render, ReferenceSettings(stereo=RENDERED_DEPTH)),
            (poor, ReferenceSettings()),
            (poor, ReferenceSettings(stereo=RENDERED_DEPTH)),
        )
    )
    assert rendered > 1.3 * best
    assert corrected - best < 0.5 * (rendered - best)


def test_different_exposures_of_photos_hardly_reduce_quality() -> None:
    rgb, depth = render(HERE)
    factors = 1 + 0.2 * torch.rand(len(VIEWS), 3, generator=torch.Generator().manual_seed(0)) - 0.1
    photos = [(truth(view)[0] * factor).clamp(0, 1) for view, factor in zip(VIEWS, factors, strict=True)]
    exposed = [replace(view, image=photo) for view, photo in zip(VIEWS, photos, strict=True)]
    equal, different = (error(ReferenceBank(views, render).restore(HERE, rgb, depth)[0]) for views in (VIEWS, exposed))
    assert different < 1.15 * equal


def test_an_exposure_common_to_all_photos_is_applied_to_the_view() -> None:
    """The splats may have other colours; the photos are correct."""
    rgb, depth = render(HERE)
    darker = [replace(view, image=0.8 * truth(view)[0]) for view in VIEWS]
    image, _ = ReferenceBank(darker, render).restore(HERE, rgb, depth)
    assert (image - 0.8 * truth(HERE)[0]).square().mean().sqrt() < 0.4 * error(rgb)


def test_an_excluded_photo_is_not_used() -> None:
    """With its own photo, a view is restored almost exactly, and a network would learn nothing from the pair."""
    view = VIEWS[3]
    rgb, depth = render(view)
    bank = ReferenceBank(VIEWS, render)
    assert bank.choose(view, depth)[0] == 3
    assert 3 not in bank.choose(view, depth, exclude=["3"])
    own, others = (error(bank.restore(view, rgb, depth, exclude=out)[0], view) for out in ([], ["3"]))
    assert own < 0.65 * others


def test_the_nearest_references_are_chosen_up_to_the_requested_number() -> None:
    bank = ReferenceBank(VIEWS, render, settings=ReferenceSettings(count=3))
    _, depth = render(HERE)
    chosen = bank.choose(HERE, depth)
    assert len(chosen) == 3 and chosen[0] in (3, 4) and len(set(chosen)) == 3


def test_a_photo_with_an_occluded_view_is_not_chosen_first() -> None:
    """A camera close behind the board does not see the wall, although all of it projects into its photo."""
    board = replace(camera("board", 0.1, y=0.02, turn=0.01), name="board")

    def draw(view: View) -> tuple[Tensor, Tensor]:
        rgb, depth = truth(view, board=False)
        return rgb, torch.ones_like(depth) if view.name == "board" else depth

    bank = ReferenceBank([photographed(board), *VIEWS], draw, settings=ReferenceSettings(count=3))
    _, depth = draw(HERE)
    assert bank.choose(HERE, depth)[0] == 0
    seen = bank.choose(HERE, depth, occlusion=True)
    assert len(seen) == 3 and 0 not in seen
    assert bank.choose(HERE, depth, count=5, occlusion=True)[:3] == seen


def test_references_that_do_not_overlap_leave_the_render_unchanged() -> None:
    back = [photographed(camera("back", 0.0, turn=math.pi))]
    rgb, depth = render(HERE)
    image, confidence = ReferenceBank(back, lambda view: truth(view, board=False)).restore(HERE, rgb, depth)
    torch.testing.assert_close(image, rgb)
    assert confidence.max() == 0


def test_pixels_without_depth_are_unchanged() -> None:
    rgb, depth = render(HERE)
    depth = depth.clone()
    depth[:, :20] = 0
    image, confidence = ReferenceBank(VIEWS, render).restore(HERE, rgb, depth)
    assert torch.isfinite(image).all() and confidence[:, :20].max() == 0
    torch.testing.assert_close(image[:, :20], rgb[:, :20])


def test_renders_of_references_are_cached_up_to_a_limit() -> None:
    drawn = []

    def counted(view: View) -> tuple[Tensor, Tensor]:
        drawn.append(view.name)
        return render(view)

    bank = ReferenceBank(VIEWS, counted, settings=ReferenceSettings(count=3))
    rgb, depth = render(HERE)
    first, _ = bank.restore(HERE, rgb, depth)
    again, _ = bank.restore(HERE, rgb, depth)
    assert len(drawn) == len(set(drawn)) <= len(VIEWS) and torch.equal(first, again)
    drawn.clear()
    small = ReferenceBank(VIEWS, counted, settings=ReferenceSettings(count=3, cache_size=2))
    torch.testing.assert_close(small.restore(HERE, rgb, depth)[0], first)
    assert len(drawn) > len(set(drawn))  # evicted renders are computed again


@pytest.mark.parametrize("size", [(33, 17), (96, 72)])
def test_references_may_have_another_size_than_the_view(size: tuple[int, int]) -> None:
    view = camera("other", 0.1, size=size)
    rgb, depth = render(view)
    image, _ = ReferenceBank(VIEWS, render).restore(view, rgb, depth)
    assert error(image, view) < 0.8 * error(rgb, view)


def test_references_may_differ_in_size() -> None:
    sizes = [(96, 72), (60, 84), (133, 71)]
    views = [
        photographed(camera(view.name, 0.25 * (i - 3), y=0.05 * (i % 2), turn=0.03 * (i - 3), size=sizes[i % 3]))
        for i, view in enumerate(VIEWS)
    ]
    rgb, depth = render(HERE)
    alike, mixed = (error(ReferenceBank(of, render).restore(HERE, rgb, depth)[0]) for of in (VIEWS, views))
    assert mixed < 1.5 * alike


def test_unusable_input_is_refused() -> None:
    with pytest.raises(ValueError, match="blind have none"):
        ReferenceBank([camera("blind", 0.0)], render)
    rgb, depth = render(HERE)
    with pytest.raises(ValueError, match="expected \\(72, 96\\) pixels"):
        ReferenceBank(VIEWS, render).restore(HERE, rgb[:-1], depth)


def test_untrained_splats_of_a_generated_capture_improve_with_its_photos(tmp_path: Path) -> None:
    """End to end with the real rasterizer: round gaussians at the seed points."""

    folder = make_capture(tmp_path, CaptureSettings(views=40, width=80, height=60, samples=1, points=2000))
    vertex = PlyData.read(str(folder / "sparse_pc.ply"))["vertex"].data
    means, colours = (
        torch.stack([torch.tensor(vertex[k].astype("f4")) for k in keys], dim=-1)
        for keys in (("x", "y", "z"), ("red", "green", "blue"))
    )
    n = len(means)
    sizes = torch.cdist(means, means).topk(3, largest=False).values[:, -1:].clamp(1e-3, 3).log().expand(n, 3)
    turns = torch.tensor([1.0, 0, 0, 0]).expand(n, 4)
    splats = Splats(means, sizes, turns, torch.full((n,), 2.0), ((colours / 255 - 0.5) / SH_C0)[:, None])
    document = json.loads((folder / "transforms.json").read_text())
    K = torch.tensor([[document["fl_x"], 0, document["cx"]], [0, document["fl_y"], document["cy"]], [0, 0, 1]])
    views = []
    for frame in document["frames"]:
        pose = torch.tensor(frame["transform_matrix"]) @ torch.diag(torch.tensor([1.0, -1, -1, 1]))
        photo = torch.tensor(np.asarray(Image.open(folder / frame["file_path"]), np.float32) / 255)
        views.append(View(frame["file_path"], torch.linalg.inv(pose), K, document["w"], document["h"], photo))

    def drawn(view: View) -> tuple[Tensor, Tensor]:
        picture = rasterize.render(splats, view, depth=True)
        assert picture.depth is not None
        return picture.rgb, picture.depth

    bank = ReferenceBank([view for i, view in enumerate(views) if i % 8], drawn)
    gains = []
    for view in views[::8]:
        assert view.image is not None
        rgb, depth = drawn(view)
        image, _ = bank.restore(view, rgb, depth)
        before, after = (metrics.compute(x, view.image, names=["psnr", "haarpsi"]) for x in (rgb, image))
        gains.append([(after[k] or 0) - (before[k] or 0) for k in ("psnr", "haarpsi")])
    psnr, haarpsi = np.mean(gains, axis=0)
    assert psnr > 1 and haarpsi > 0.1, f"{psnr:.2f} dB, HaarPSI {haarpsi:.3f}"
