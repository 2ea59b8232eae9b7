"""How fast `ns-render` renders, and how fast it restores."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # else the work would be counted where its result is first needed
    return time.perf_counter()
