"""`ns-render` reports frames per second, but not how much of the time is spent on restoring.

Not reported upstream. `ns-render` imports its column after it has loaded plugins, so a pipeline installs this repair.
"""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from nerfstudio.utils.rich_utils import ItersPerSecColumn
from rich.progress import Task
from rich.text import Text


class Stopwatch:
    """Records the time of the last views for each kind of work, while `running` is set."""

    def __init__(self, views: int = 30) -> None:
        self.running = False
        self._views = views
        self._seconds: dict[str, deque[float]] = {}

    @contextmanager
    def time(self, work: str) -> Iterator[None]:
        """Time one view's `work`."""
        if not self.running:
            yield
            return
        start = _now()
        yield
        self._seconds.setdefault(work, deque(maxlen=self._views)).append(_now() - start)

    def __str__(self) -> str:
        """Return the frames per second of each kind of work, averaged over the last views."""
        # copy the items, because another thread draws the progress line
        means = {work: sum(seconds) / len(seconds) for work, seconds in list(self._seconds.items())}
        return ", ".join(f"{work} {1 / max(mean, 1e-9):.2f} fps" for work, mean in means.items())


STOPWATCH = Stopwatch()
"""The stopwatch of this process: a model times its views with it, and the progress line shows what it says."""


class SpeedColumn(ItersPerSecColumn):
    """Nerfstudio's column of frames per second, followed by the speeds of rendering and restoring."""

    def render(self, task: Task) -> Text:
        """Return a text such as `0.71 fps (rendering 14.20 fps, restoring 0.75 fps)`."""
        text = super().render(task)
        return text.append(f" ({STOPWATCH})") if str(STOPWATCH) else text


def install() -> None:
    """Show speeds in the progress line of a running `ns-render`."""
    render = sys.modules.get("nerfstudio.scripts.render")
    if render is not None:
        vars(render)["ItersPerSecColumn"] = SpeedColumn
        STOPWATCH.running = True


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # else the time would be counted where the result is first used
    return time.perf_counter()
