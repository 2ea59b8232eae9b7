from dataclasses import replace
from typing import Any

import pytest
import torch
from splat_scenes import random_splats, views_of_middle

from nifi_ns.compress import (
    CompressionSettings,
    _cameras,
    _finetune,
    _importance,
    _rate,
    cameras_around,
    compress,
    compress_to_loss,
    decode,
    info,
    with_renders,
)
from nifi_ns.compress._cameras import looking_at
from nifi_ns.errors import NifiError
from nifi_ns.rasterize import Render, render
from nifi_ns.splats import Splats
from nifi_ns.views import View

SETTINGS = CompressionSettings(target_size="1.5KB", steps=80, stages=4)


def error(splats: Splats, views: list[View]) -> float:
    pairs = [(render(splats, view).rgb, view.image) for view in views]
    return sum(float((image - photo).square().mean()) for image, photo in pairs if photo is not None) / len(views)


@pytest.fixture(scope="module")
def splats() -> Splats:
    splats = random_splats(800)
    return replace(splats, means=splats.means.clamp(-2, 2), scales=splats.scales * 0.5 - 0.5)


@pytest.fixture(scope="module")
def views(splats: Splats) -> list[View]:
    return with_renders(splats, views_of_middle(6))


def test_fine_tuning_reduces_the_error_by_a_quarter(splats: Splats, views: list[View]):
    plain = compress(splats, views, replace(SETTINGS, steps=0), progress=False)
    tuned = compress(splats, views, SETTINGS, progress=False)
    assert 0.98 * 1500 <= len(tuned.data) <= 1500
    assert error(tuned.splats, views) < 0.75 * error(plain.splats, views)
    torch.testing.assert_close(tuned.splats.means, decode(tuned.data).means)


def test_the_same_seed_gives_the_same_file(splats: Splats, views: list[View]):
    short = replace(SETTINGS, steps=10)
    first, again, other = (compress(splats, views, replace(short, seed=s), progress=False).data for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_neither_photos_nor_views_are_required(splats: Splats, views: list[View]):
    without_photos = [replace(view, image=None) for view in views]
    assert compress(splats, without_photos, replace(SETTINGS, steps=5), progress=False).data
    assert compress(splats, [], replace(SETTINGS, steps=1, importance_views=4), progress=False).data


def test_the_sh_degree_is_that_of_the_settings_or_of_the_splats_if_lower(views: list[View]):
    splats = random_splats(200, sh_degree=2)
    for degree, kept in ((0, 0), (1, 1), (3, 2)):
        settings = CompressionSettings(target_size="1KB", sh_degree=degree, steps=2)
        assert compress(splats, views, settings, progress=False).splats.sh_degree == kept


@pytest.mark.parametrize("antialiased", [False, True])
def test_all_renders_are_antialiased_if_the_splats_are(
    splats: Splats, views: list[View], antialiased: bool, monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def recorded(*arguments: Any, **options: Any) -> Render:
        seen.append(options.get("antialiased", False))
        return render(*arguments, **options)

    for module in (_cameras, _finetune, _importance, _rate):
        monkeypatch.setattr(module, "render", recorded)
    short = replace(SETTINGS, steps=3, stages=1, importance_views=2)
    files = [compress(splats, views, short, antialiased=antialiased, progress=False)]
    files.append(compress(splats, [], replace(short, steps=1), antialiased=antialiased, progress=False))
    photos = [replace(view, image=0.8 * view.image) for view in views if view.image is not None]
    files.append(compress_to_loss(splats, photos, 5.0, replace(short, steps=0), antialiased=antialiased))
    assert set(seen) == {antialiased} and len(seen) > 40
    assert [info(file.data).antialiased for file in files] == [antialiased] * 3


def test_an_empty_scene_is_refused(splats: Splats):
    with pytest.raises(NifiError, match="empty"):
        compress(splats[torch.zeros(len(splats), dtype=torch.bool)], [], SETTINGS)


def test_cameras_around_see_the_scene_from_free_space(splats: Splats):
    views = cameras_around(splats, count=12, size=48)
    rendered = with_renders(splats, views)
    covered = [render(splats, view).alpha.mean() for view in views]
    assert min(covered) > 0.05
    assert len({tuple(view.centre.tolist()) for view in views}) == 12
    nearest = torch.stack([(splats.means - view.centre).norm(dim=1).min() for view in views])
    assert nearest.min() > 0.1
    assert all(view.image is not None and view.image.shape == (48, 48, 3) for view in rendered)


@pytest.mark.parametrize("target", [[0.0, 0, 0], [1.0, 2, 8], [1.0, 2, -3]])
def test_looking_at_puts_the_target_in_the_middle(target: list[float]):
    centre = torch.tensor([1.0, 2.0, 3.0])
    viewmat = looking_at(centre, torch.tensor(target))
    seen = viewmat[:3, :3] @ torch.tensor(target) + viewmat[:3, 3]
    assert seen[:2].abs().max() < 1e-5
    assert seen[2] > 0
    torch.testing.assert_close(viewmat[:3, :3] @ viewmat[:3, :3].T, torch.eye(3))
    assert torch.linalg.det(viewmat[:3, :3]) > 0
