"""How fast `ns-render` renders, and how fast it restores, in its progress line."""

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
    """Remembers how long the last views took, of each kind of work, once somebody wants to know."""

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
        """Frames per second of each kind of work, mean of the last views."""
        # a copy, since the progress line is drawn by a thread of its own
        means = {work: sum(seconds) / len(seconds) for work, seconds in list(self._seconds.items())}
        return ", ".join(f"{work} {1 / max(mean, 1e-9):.2f} fps" for work, mean in means.items())


STOPWATCH = Stopwatch()


class SpeedColumn(ItersPerSecColumn):
    """Nerfstudio's column of frames per second, followed by what a frame's time goes to."""

    def render(self, task: Task) -> Text:
        """Such as `0.71 fps (rendering 14.20 fps, restoring 0.75 fps)`."""
        text = super().render(task)
        return text.append(f" ({STOPWATCH})") if str(STOPWATCH) else text


def show_speeds() -> None:
    """Let a running `ns-render` show speeds. It loads plugins before it imports its column, so that this comes late."""
    render = sys.modules.get("nerfstudio.scripts.render")
    if render is not None:
        vars(render)["ItersPerSecColumn"] = SpeedColumn
        STOPWATCH.running = True


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # else the work would be counted where its result is first needed
    return time.perf_counter()
