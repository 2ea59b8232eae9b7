"""`ns-viewer` in a real browser, over its real websocket: what a user sees and does."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from nerfstudio.scripts.render import RenderCameraPath
from PIL import Image
from tiny_runs import copy_run

from nifi_ns.plugin.runs import load_run

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
"""WebGL without a GPU."""
SECONDS = 100
"""Timeout in seconds of every wait."""
SAME, CHANGED = 0.15, 0.3
"""Mean absolute differences of pictures, of 255; pictures are sent as JPEG."""

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def config(run_with_choices: Path, tiny_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the config.yml of a separate run, because the viewer writes to the folders of the run and its capture."""
    folder = tmp_path_factory.mktemp("browsed")
    return copy_run(run_with_choices, folder, shutil.copytree(tiny_capture, folder / "capture"))


@pytest.fixture
def port(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Return the port of an `ns-viewer` of a run. The server keeps what is chosen, so each test has its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("viewer") / "log.txt"
    command = [sys.executable, "-m", "nerfstudio.scripts.viewer.run_viewer", "--load-config", str(config)]
    with log.open("w") as output:
        viewer = subprocess.Popen([*command, "--viewer.websocket-port", str(port)], stdout=output, stderr=output)
        try:
            until(lambda: viewer.poll() is not None or answers("127.0.0.1", port))
            assert viewer.poll() is None, log.read_text()
            yield port
        finally:
            viewer.terminate()
            viewer.wait()
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture
def page(port: int) -> "Iterator[Page]":
    """Return the viewer's page, once it displays the scene."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport={"width": 720, "height": 600})
        page.goto(f"http://127.0.0.1:{port}/")
        page.get_by_text("Hide Train Cams").click(timeout=1000 * SECONDS)
        until(lambda: "0x0" not in page.get_by_text("Resolution:").inner_text().replace("\u00d7", "x"))
        yield page
        browser.close()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.1)


def answers(host: str, port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(2)
        return client.connect_ex((host, port)) == 0


def addresses() -> list[str]:
    """Return addresses of this machine that are reachable only if a server listens on all interfaces."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: selects the source address of outgoing packets
            return ["127.0.0.2", probe.getsockname()[0]]
        except OSError:
            return ["127.0.0.2"]


def panel(page: "Page") -> str:
    """Return the text of the panel."""
    return page.locator("p", has_text="bytes").inner_text()


def picture(page: "Page") -> np.ndarray:
    """Return the canvas [H, W, 3], left of the panel, below the title and above the axes."""
    data = page.screenshot(clip={"x": 0, "y": 60, "width": 380, "height": 440})
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


def at_rest(page: "Page") -> np.ndarray:
    """Return the picture once it has stopped changing."""
    pictures = [picture(page)]

    def still() -> bool:
        page.wait_for_timeout(700)
        pictures.append(picture(page))
        return len(pictures) > 3 and all(differ(pictures[-1], before) < SAME for before in pictures[-4:-1])

    until(still)
    return pictures[-1]


def changes(page: "Page", unlike: np.ndarray) -> np.ndarray:
    """Wait until the picture has changed, and return it at rest."""
    until(lambda: differ(picture(page), unlike) > CHANGED)
    return at_rest(page)


def choose(page: "Page", label: str, option: str) -> None:
    """Choose the option that begins with `option` in the dropdown `label`."""
    page.get_by_label(label, exact=True).and_(page.locator("input:visible")).first.click()
    label_begins = re.compile(rf"^\s*{re.escape(option)}\b")  # "2.4KB" contains "4KB"
    page.get_by_role("option").filter(visible=True, has_text=label_begins).first.click()


def box(page: "Page", label: str) -> "Locator":
    return page.get_by_label(label, exact=True).first


def differ(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean absolute difference, of 255."""
    return float(np.abs(a - b).mean())


def test_the_viewer_listens_on_this_machine_only(port: int) -> None:
    with socket.socket() as everywhere:  # check the addresses: a server on all interfaces is reachable
        everywhere.bind(("0.0.0.0", 0))
        everywhere.listen()
        assert all(answers(address, everywhere.getsockname()[1]) for address in addresses())
    assert answers("127.0.0.1", port)
    assert not any(answers(address, port) for address in addresses())


def test_a_user_compares_rates_and_restorations(page: "Page", config: Path, tmp_path: Path) -> None:
    shots = Path(os.environ.get("NIFI_SCREENSHOTS", tmp_path))
    size = {rate: (config.parent / "nifi" / rate / "scene.nifi").stat().st_size for rate in ("4KB", "half")}
    compressed = at_rest(page)
    assert compressed.std() > 2  # the picture is not empty
    assert f"{size['4KB']:,} bytes" in panel(page)

    choose(page, "Rate", "half")
    until(lambda: f"{size['half']:,} bytes" in panel(page))
    half = changes(page, compressed)
    choose(page, "Rate", "4KB")
    compressed = changes(page, half)

    box(page, "Restore").check()
    until(lambda: "Last restoration" in panel(page))
    restored = changes(page, compressed)
    page.screenshot(path=shots / "restored.png")
    box(page, "Show change").check()
    tinted = changes(page, restored)
    page.screenshot(path=shots / "what_changed.png")
    box(page, "Show change").uncheck()
    changes(page, tinted)
    box(page, "Restore").uncheck()
    changes(page, restored)


def test_a_user_switches_outputs_and_splits_the_screen(page: "Page", tmp_path: Path) -> None:
    shots = Path(os.environ.get("NIFI_SCREENSHOTS", tmp_path))
    rgb = at_rest(page)
    choose(page, "Output type", "depth")
    depth = changes(page, rgb)
    choose(page, "Output type", "rgb_uncompressed")
    uncompressed = changes(page, depth)
    choose(page, "Output type", "rgb")
    rgb = changes(page, uncompressed)

    box(page, "Enable").check()  # the first is the split screen's
    choose(page, "Output render split", "rgb_uncompressed")
    left, right = np.s_[:, :170], np.s_[:, 230:]
    until(lambda: differ(picture(page)[right], rgb[right]) > CHANGED)
    split = at_rest(page)
    page.screenshot(path=shots / "split.png")
    assert differ(split[left], rgb[left]) < differ(split[left], uncompressed[left])
    assert differ(split[right], uncompressed[right]) < differ(split[right], rgb[right])
    box(page, "Enable").uncheck()


def drag(page: "Page") -> None:
    """Turn the camera, and wait until the picture has followed."""
    before = at_rest(page)
    page.mouse.move(150, 250)
    page.mouse.down()
    for step in range(1, 8):
        page.mouse.move(150 + 10 * step, 250)
        page.wait_for_timeout(50)
    page.mouse.up()
    changes(page, before)


def test_a_user_drags_the_camera_and_renders_a_path(page: "Page", config: Path, tmp_path: Path) -> None:
    paths = load_run(config).pipeline.datamanager.get_datapath() / "camera_paths"
    page.get_by_role("tab", name="Render").click()
    page.get_by_role("button", name="Add Keyframe").click()
    drag(page)
    page.get_by_role("button", name="Add Keyframe").click()
    # viser's text fields are not linked to their labels
    page.locator("label", has_text="Render name").locator("xpath=../../..").locator("input").fill("of_a_browser")
    wanted = {"1920": 64, "1080": 56, "30": 2}
    fields = {old: page.locator(f"input[value='{old}']:visible").last.element_handle() for old in wanted}
    saved = paths / "of_a_browser.json"

    def is_saved() -> bool:
        """Enter resolution and frame rate; a late response to an earlier input may undo them."""
        for old, field in fields.items():
            for value in (old, str(wanted[old])):
                field.fill(value)
                field.press("Tab")
                page.wait_for_timeout(100)
        page.get_by_role("button", name="Generate Command").click()
        until(saved.is_file)
        path = json.loads(saved.read_text())
        return [path["render_width"], path["render_height"], path["fps"]] == list(wanted.values())

    until(is_saved)
    RenderCameraPath(
        load_config=config,
        camera_path_filename=paths / "of_a_browser.json",
        output_path=tmp_path / "path",
        output_format="images",
        image_format="png",
        rendered_output_names=["rgb", "rgb_restored"],
    ).main()
    frames = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "path").glob("*.png"))]
    assert len(frames) > 1 and frames[0].shape == (56, 128, 3)  # both outputs side by side
    assert differ(frames[0].astype(float), frames[-1].astype(float)) > 1
