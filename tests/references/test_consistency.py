from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nifi_ns.novel_views import stepped
from nifi_ns.rasterize import render
from nifi_ns.references import consistency
from nifi_ns.splats import Splats
from nifi_ns.views import View

SIZE = 64


def camera(x: float) -> View:
    viewmat = torch.eye(4)
    viewmat[0, 3], viewmat[2, 3] = -x, 3.0
    return View("camera", viewmat, torch.tensor([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]]), SIZE, SIZE)


def wall() -> Splats:
    """Return a plane of small coloured gaussians that faces the cameras."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.meshgrid(torch.linspace(-2.5, 2.5, 40), torch.linspace(-2.5, 2.5, 40), indexing="xy")
    means = torch.stack([x.flatten(), y.flatten(), torch.zeros(1600)], dim=1)
    scales = torch.tensor([-2.4, -2.4, -6.0]).repeat(1600, 1)
    sh = torch.randn(1600, 1, 3, generator=generator)
    return Splats(means, scales, torch.tensor([[1.0, 0, 0, 0]]).repeat(1600, 1), torch.full((1600,), 4.0), sh)


def seen(view: View) -> tuple[Tensor, Tensor]:
    drawn = render(wall(), view, depth=True)
    assert drawn.depth is not None
    return drawn.rgb, drawn.depth


def test_views_of_one_scene_agree_and_invented_details_do_not() -> None:
    one, other = camera(0), camera(0.3)
    (a, depth_a), (b, depth_b) = seen(one), seen(other)
    same = consistency(one, a, depth_a, other, b, depth_b)
    invented = 0.1 * torch.randn(b.shape, generator=torch.Generator().manual_seed(1))
    other_world = consistency(one, a, depth_a, other, (b + invented).clamp(0, 1), depth_b)
    shifted = consistency(one, a, depth_a, one, b, depth_a)
    assert same is not None and other_world is not None and shifted is not None
    assert same > 28 and other_world < same - 5 and shifted < same - 5


def test_pixels_visible_in_one_view_only_are_not_compared() -> None:
    one, other = camera(0), camera(0.3)
    (a, depth_a), (b, depth_b) = seen(one), seen(other)
    before = consistency(one, a, depth_a, other, b, depth_b)
    occluded, nearer = b.clone(), depth_b.clone()
    occluded[:, 20:40], nearer[:, 20:40] = 1 - b[:, 20:40], 0.5 * depth_b[:, 20:40]
    after = consistency(one, a, depth_a, other, occluded, nearer)
    assert before is not None and after is not None and abs(after - before) < 1.5
    assert consistency(one, a, depth_a, camera(50), b, depth_b) is None


def test_a_step_moves_straight_and_turns_evenly() -> None:
    turn = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # 90 degrees about y
    other = camera(2)
    other = replace(other, viewmat=other.viewmat.clone())
    other.viewmat[:3, :3] = turn
    other.viewmat[:3, 3] = -turn @ torch.tensor([2.0, 0, -3])
    half = stepped(camera(0), other, 0.5)
    torch.testing.assert_close(half.centre, torch.tensor([1.0, 0, -3]))
    assert torch.trace(half.viewmat[:3, :3]).item() == pytest.approx(1 + 2 * 0.5**0.5, abs=1e-5)
    torch.testing.assert_close(stepped(camera(0), other, 0.0).viewmat, camera(0).viewmat)
    torch.testing.assert_close(stepped(camera(0), other, 1.0).viewmat, other.viewmat)
