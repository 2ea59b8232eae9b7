"""Measures how fast `ns-render` renders and restores."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # else the time would be counted where the result is first used
    return time.perf_counter()
