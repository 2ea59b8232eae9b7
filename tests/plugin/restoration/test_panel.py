"""The panel in nerfstudio's own viewer, without a browser: the tests inspect what would be sent to one."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO, Viewer
from tiny_runs import copy_run
from viser import GuiApi

from nifi_ns.plugin.restoration.view_restorer import ViewRequest
from nifi_ns.plugin.runs import load_run
from nifi_ns.restore import RestorerSettings

SECONDS = 20
"""Timeout in seconds of every wait."""


class ViewerSession:
    """A viewer with a simulated browser: its camera, its widgets and the pictures sent to it."""

    def __init__(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.widgets: dict[str, Any] = {}
        """By their labels."""
        self._texts: list[Any] = []
        for kind in ("add_checkbox", "add_dropdown", "add_markdown", "add_number", "add_slider", "add_text"):
            monkeypatch.setattr(GuiApi, kind, self._recording(getattr(GuiApi, kind)))
        run = load_run(config)
        self.nifi = run.folder / "nifi"
        self.model = run.model
        log = run.folder / "viewer.log"
        settings = ViewerConfig(websocket_host="127.0.0.1")
        self.lock = threading.Lock()
        self.viewer = Viewer(settings, log, run.folder, run.pipeline, train_lock=self.lock)
        self.pictures: list[np.ndarray] = []
        dataset = run.pipeline.datamanager.train_dataset
        assert dataset is not None
        camera = dataset.cameras[0]
        rotation = camera.camera_to_worlds[:, :3].numpy() @ np.diag([1.0, -1.0, -1.0])
        self.camera = SimpleNamespace(
            wxyz=_wxyz(rotation),
            position=camera.camera_to_worlds[:, 3].numpy() * VISER_NERFSTUDIO_SCALE_RATIO,
            fov=0.8,
            aspect=1.0,
        )
        send = lambda picture, **_: self.pictures.append(picture)  # noqa: E731
        client = SimpleNamespace(camera=self.camera, scene=SimpleNamespace(set_background_image=send), client_id=0)
        self.viewer.viser_server.get_clients = lambda: {0: client}  # type: ignore[method-assign]
        self.thread = RenderStateMachine(self.viewer, VISER_NERFSTUDIO_SCALE_RATIO, client)  # type: ignore[arg-type]
        self.viewer.render_statemachines[0] = self.thread
        self.widgets["Max res"].value = 64
        self.thread.start()

    def _recording(self, add: Callable[..., Any]) -> Callable[..., Any]:
        """Return `add`, extended to record the widgets that it adds."""

        def add_and_record(gui: GuiApi, label: str, *args: object, **options: object) -> Any:
            widget = add(gui, label, *args, **options)
            if add.__name__ == "add_markdown":
                self._texts.append(widget)
            else:
                self.widgets[label] = widget
            return widget

        return add_and_record

    def move(self) -> None:
        """Move the camera a little."""
        self.camera.position = self.camera.position + 0.01
        self.thread.action(RenderAction("move", self.viewer.get_camera_state(self.thread.client)))

    def settle(self) -> np.ndarray:
        """Return the picture once the camera rests and nothing is being restored."""
        until(lambda: self.thread.state == "high" and bool(self.pictures) and "estoring …" not in self.text)
        time.sleep(0.3)
        until(lambda: "estoring …" not in self.text)
        return self.pictures[-1].astype(float)

    def change(self, label: str, value: object) -> np.ndarray:
        """Set the widget of that label to a value, and return the picture."""
        seen = len(self.pictures)
        self.widgets[label].value = value
        until(lambda: len(self.pictures) > seen)
        return self.settle()

    @property
    def text(self) -> str:
        """All text on the page."""
        return "\n".join(text.content for text in self._texts)

    def close(self) -> None:
        self.thread.running = False
        self.thread.join()
        self.viewer.viser_server.stop()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def _wxyz(rotation: np.ndarray) -> np.ndarray:
    import viser.transforms as vtf

    return vtf.SO3.from_matrix(rotation).wxyz


@pytest.fixture
def session(run_with_choices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ViewerSession]:
    session = ViewerSession(copy_run(run_with_choices, tmp_path), monkeypatch)
    yield session
    session.close()


def differ(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def test_the_rate_selects_the_splats(session: ViewerSession) -> None:
    assert "4KB" in session.widgets["Rate"].value and "half" in session.widgets["Rate"].options[0]
    compressed = session.settle()
    size = (session.nifi / "4KB" / "scene.nifi").stat().st_size
    assert f"{size:,} bytes" in session.text
    half = session.change("Rate", session.widgets["Rate"].options[0])
    uncompressed = session.change("Rate", "uncompressed")
    assert f"{session.model.uncompressed_splats.ply_size:,} bytes" in session.text
    assert differ(compressed, half) > 2 and differ(half, uncompressed) > 2 and differ(uncompressed, compressed) > 2
    assert differ(session.change("Rate", session.widgets["Rate"].options[1]), compressed) < 1


def test_the_compressed_view_is_immediate_and_the_restored_view_follows(
    session: ViewerSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressed, go = session.settle(), threading.Event()
    locked: list[bool] = []

    def slow(picture: torch.Tensor, **_: object) -> torch.Tensor:
        assert go.wait(SECONDS)
        locked.append(session.lock.locked())
        return 1 - picture

    monkeypatch.setattr(
        session.model.view_restorer, "load", lambda _: Mock(side_effect=slow, settings=RestorerSettings())
    )
    seen = len(session.pictures)
    session.widgets["Restore"].value = True
    until(lambda: len(session.pictures) > seen and "estoring …" in session.text)
    assert differ(session.pictures[-1], compressed) < 1
    go.set()
    strength = session.widgets["Strength"].value
    wanted = (1 - strength) * compressed + strength * (255 - compressed)
    until(lambda: differ(session.pictures[-1], wanted) < 3)
    assert "Last restoration" in session.text
    assert locked == [False]
    # the slider blends without the restorer
    assert differ(session.change("Strength", 0.0), compressed) < 1
    assert differ(session.change("Strength", 1.0), 255 - compressed) < 2
    assert len(locked) == 1


def test_nothing_is_restored_or_displayed_late_while_the_camera_moves(
    session: ViewerSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.settle()
    go, restored = threading.Event(), []

    def slow(picture: torch.Tensor, **_: object) -> torch.Tensor:
        restored.append(session.thread.state)
        assert go.wait(SECONDS)
        return torch.ones_like(picture)

    monkeypatch.setattr(
        session.model.view_restorer, "load", lambda _: Mock(side_effect=slow, settings=RestorerSettings())
    )
    session.widgets["Strength"].value = 1.0
    session.widgets["Restore"].value = True
    until(lambda: len(restored) == 1)
    for _ in range(20):
        session.move()
        time.sleep(0.02)
        if len(session.pictures) % 5 == 0:
            go.set()  # the first result is ready while the camera moves
    assert len(restored) == 1
    assert not any(picture.min() == 255 for picture in session.pictures)
    until(lambda: session.pictures[-1].min() == 255)
    assert restored == ["high", "high"]


def test_a_failing_restorer_is_reported_and_the_viewer_continues(
    session: ViewerSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressed = session.settle()
    session.widgets["Folder"].value = "/nowhere/{at all}"
    session.change("Restorer", "another folder")
    assert differ(session.change("Restore", True), compressed) < 1
    assert "Not restored: `no restorer in /nowhere/{at all}" in session.text

    def out_of_memory(_: ViewRequest) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(ViewRequest, "restored", property(out_of_memory))
        session.change("Restorer", "restorer")
        until(lambda: "CUDA out of memory" in session.text)
    session.move()
    until(lambda: "Last restoration" in session.text)
    assert session.thread.is_alive()
    assert differ(session.settle(), compressed) > 2


def test_without_restorer_and_photos_the_panel_reports_what_is_missing(session: ViewerSession) -> None:
    session.settle()
    session.change("Restorer", "none")
    session.change("Restore", True)
    assert "Not restored" in session.text and "Use photos" in session.text
    assert session.widgets["Strength"].disabled
    session.change("Use photos", True)
    until(lambda: "Last restoration" in session.text)


def test_show_change_tints_changed_pixels(session: ViewerSession) -> None:
    compressed = session.settle()
    restored = session.change("Restore", True)
    tinted = session.change("Show change", True)
    changed = np.abs(tinted - restored).max(axis=-1) > 20
    assert changed.any() and not changed.all()
    assert (tinted[changed][:, 0] >= restored[changed][:, 0] - 2).mean() > 0.5
    assert differ(session.change("Show change", False), restored) < 1
    assert differ(session.change("Restore", False), compressed) < 1


def test_split_screen_displays_both_outputs(session: ViewerSession) -> None:
    compressed = session.settle()
    controls = session.viewer.control_panel
    controls._split_output_render.value = "rgb_restored"
    controls._split.value = True
    until(lambda: "Last restoration" in session.text)
    split = session.settle()
    middle = split.shape[1] // 2
    assert differ(split[:, : middle - 1], compressed[:, : middle - 1]) < 1
    assert differ(split[:, middle + 1 :], compressed[:, middle + 1 :]) > 2


def test_new_files_and_restorers_are_found_while_the_viewer_runs(session: ViewerSession) -> None:
    session.settle()
    shutil.copytree(session.nifi / "half", session.nifi / "again")
    shutil.copytree(session.nifi / "restorer", session.nifi / "other")
    session.move()
    until(lambda: any("again" in label for label in session.widgets["Rate"].options))
    until(lambda: "other" in session.widgets["Restorer"].options)
