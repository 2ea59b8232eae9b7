"""Requests for restored views, and the object that serves them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from nerfstudio.engine.trainer import Trainer
from tiny_runs import model_of, save_restorer

from nifi_ns.errors import NifiError
from nifi_ns.plugin.data.dataset_views import DatasetViews
from nifi_ns.plugin.restoration.restoration_choice import RestorationChoice
from nifi_ns.plugin.restoration.view_restorer import ViewRequest, ViewRestorer
from nifi_ns.plugin.splat.model import NifiSplatModel
from nifi_ns.references import ReferenceBank
from nifi_ns.restore import Restorer


@pytest.fixture
def model(trained: Trainer) -> Iterator[NifiSplatModel]:
    model = model_of(trained).eval()
    views, restorer = model.train_views, model.config.restorer
    yield model
    model.train_views, model.config.restorer = views, restorer


@pytest.fixture
def restorer(model: NifiSplatModel) -> ViewRestorer:
    return ViewRestorer(model)


def request_at(restorer: ViewRestorer, index: int = 0, **more: object) -> ViewRequest:
    model = restorer.model
    assert isinstance(model, NifiSplatModel) and model.train_views is not None
    view = model.train_views[index]
    return restorer.request(view, *model.render_view(view, model.splats), **more)  # type: ignore[arg-type]


def test_each_result_is_computed_once(restorer: ViewRestorer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    restore = ReferenceBank.restore
    monkeypatch.setattr(ReferenceBank, "restore", lambda *a, **kw: (calls.append(1), restore(*a, **kw))[1])
    request = request_at(restorer, choice=RestorationChoice(use_photos=True))
    assert calls == []
    before, after = request.restored
    assert torch.equal(before, request.referenced) and torch.equal(after, request.picture)
    assert len(calls) == 1


def test_an_excluded_photo_is_not_used(restorer: ViewRestorer) -> None:
    assert restorer.model.train_views is not None
    view = restorer.model.train_views[0]
    own = request_at(restorer).photos(1)[0]
    assert view.image is not None
    assert torch.equal(own, view.image)  # no other photo shows more of the view
    other = request_at(restorer, exclude=view.name)
    assert not any(torch.equal(photo, own) for photo in other.photos(8))
    assert not torch.equal(other.referenced, request_at(restorer).referenced)


def test_a_missing_restorer_or_photo_is_reported(restorer: ViewRestorer) -> None:
    with pytest.raises(NifiError, match="no restorer: train one"):
        request_at(restorer, choice=RestorationChoice()).picture  # noqa: B018
    request = request_at(restorer)
    restorer.model.train_views = None
    with pytest.raises(NifiError, match="need the capture's photos"):
        request.referenced  # noqa: B018


def test_two_threads_load_a_restorer_once(
    restorer: ViewRestorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_restorer(tmp_path / "restorer")
    loads = []
    load = Restorer.from_pretrained

    def slow(*args: object, **kwargs: object) -> Restorer:
        loads.append(threading.current_thread())
        time.sleep(0.2)
        return load(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Restorer, "from_pretrained", slow)
    found: list[Restorer] = []
    threads = [threading.Thread(target=lambda: found.append(restorer.load(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1 and len(found) == 4 and all(one is found[0] for one in found)


def test_a_restorer_that_is_trained_again_is_loaded_again(restorer: ViewRestorer, tmp_path: Path) -> None:
    folder = save_restorer(tmp_path / "restorer")
    first = restorer.load(folder)
    assert restorer.load(folder) is first
    about = folder / "restorer.json"
    time.sleep(0.01)
    about.write_text(about.read_text())
    assert restorer.load(folder) is not first


def test_blending(restorer: ViewRestorer) -> None:
    rgb, after = torch.full((4, 6, 3), 0.2), torch.full((4, 6, 3), 0.2)
    after[:2] = 0.8
    half = RestorationChoice(strength=0.5).blend(rgb, rgb, after)
    torch.testing.assert_close(half, (rgb + after) / 2)
    tinted = RestorationChoice(strength=0.5, show_change=True).blend(rgb, rgb, after)
    torch.testing.assert_close(tinted[2:], rgb[2:])
    assert (tinted[:2, :, 0] > half[:2, :, 0]).all() and (tinted[:2, :, 1] < half[:2, :, 1]).all()


def test_cameras_are_read_without_converting_photos(trained: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    views = DatasetViews(trained.pipeline.datamanager, "train")  # type: ignore[arg-type]
    expected = list(views)
    monkeypatch.setattr(DatasetViews, "__getitem__", lambda *_: pytest.fail("a photo was converted"))
    assert [camera.name for camera in views.cameras] == [view.name for view in expected]
    for camera, view in zip(views.cameras, expected, strict=True):
        assert camera.image is None
        assert torch.equal(camera.viewmat, view.viewmat) and torch.equal(camera.K, view.K)
