"""A worker thread that computes slow outputs for the viewer's render threads, and redraws when they are ready."""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine

from nifi_ns.errors import NifiError

EXPECTED_ERRORS = (NifiError, OSError, torch.cuda.OutOfMemoryError)
"""Errors that a user can fix. Their message is shown without a stack trace."""

PAUSE = 3
"""Length of the pause after each computation, relative to its duration, while training changes a resting view."""


def render_thread() -> RenderStateMachine | None:
    """Return the viewer's render thread if it is the calling thread, else None. Each browser has its own."""
    thread = threading.current_thread()
    return thread if isinstance(thread, RenderStateMachine) else None


def is_moving(viewer: RenderStateMachine) -> bool:
    """Return whether the camera of `viewer` moves, or is about to."""
    upcoming = viewer.next_action
    return viewer.state != "high" or (upcoming is not None and upcoming.action in ("move", "rerender"))


def redraw(viewer: RenderStateMachine) -> None:
    """Make `viewer` render its view again at full resolution, if its camera rests."""
    # training sends a "step" when the scene has changed; it is ignored while the camera moves
    viewer.action(RenderAction("step", viewer.viewer.get_camera_state(viewer.client)))


class _Abandoned(Exception):
    """Raised within work whose result is no longer needed."""


@dataclass(eq=False)
class _Job:
    """The resting view of one viewer, and its computed values."""

    key: Hashable
    step: int
    source: object
    values: dict[str, Any]
    """By name. They may come from an earlier training step."""
    wanted: list[str] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)


class ViewerWorker:
    """Computes values for the viewer's render threads in its own thread, only for the newest view of each.

    It starts no work while the camera moves, holds no lock of the viewer or the trainer, and leaves most of the time to
    training.
    """

    def __init__(
        self, begin: Callable[[], None], done: Callable[[float | None], None], fail: Callable[[BaseException], None]
    ) -> None:
        """
        Args:
            begin: called before a value is computed.
            done: called with the seconds it took, or None if it was abandoned.
            fail: called with the error if a value cannot be computed.
        """
        self._begin, self._done, self._fail = begin, done, fail
        self._changed = threading.Condition()
        self._jobs: WeakKeyDictionary[RenderStateMachine, _Job] = WeakKeyDictionary()
        self._thread: threading.Thread | None = None
        self._paused_until = 0.0
        self._current: tuple[RenderStateMachine, _Job] | None = None

    def get(self, viewer: RenderStateMachine, name: str, key: Hashable, step: int, source: object) -> Any:
        """Return a computed value, or None: then the viewer renders again once the value is ready.

        Args:
            viewer: the render thread.
            name: an attribute of `source`, computed on access.
            key: equal for views whose values are equal at the same training step.
            step: the training step. Values of an earlier step are returned until new ones are computed.
            source: the object with the values of this view.
        """
        with self._changed:
            job = self._jobs.get(viewer)
            if job is None or job.key != key:
                job = self._jobs[viewer] = _Job(key, step, source, {})
            elif job.step != step and name in job.read and not job.wanted and time.monotonic() > self._paused_until:
                job = self._jobs[viewer] = _Job(key, step, source, job.values)
            if name in job.made:
                job.read.add(name)
            elif name not in job.wanted:
                job.wanted.append(name)
                self._wake()
            return job.values.get(name)

    def forget(self) -> None:
        """Discard all values, because settings that are not part of the keys have changed."""
        with self._changed:
            self._jobs.clear()

    def check(self) -> None:
        """Abandon the current work if its result is no longer needed. Long work calls this from time to time."""
        if threading.current_thread() is self._thread and self._current is not None and self._stale(*self._current):
            raise _Abandoned

    def _stale(self, viewer: RenderStateMachine, job: _Job) -> bool:
        return self._jobs.get(viewer) is not job or not viewer.running or is_moving(viewer)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="nifi-viewer-worker", daemon=True)
            self._thread.start()
        self._changed.notify()

    def _next(self) -> tuple[RenderStateMachine, _Job, str] | None:
        for viewer, job in list(self._jobs.items()):
            if self._stale(viewer, job):
                job.wanted.clear()  # the viewer requests them again when its camera rests

            elif job.wanted:
                return viewer, job, job.wanted[0]
        return None

    def _work(self) -> None:
        while True:
            with self._changed:
                while (found := self._next()) is None:
                    self._changed.wait()
                viewer, job, name = found
                self._current = viewer, job
            value, started = None, time.perf_counter()
            try:
                self._begin()
                with torch.no_grad():
                    value = getattr(job.source, name)
                seconds = time.perf_counter() - started
                self._done(seconds)
                self._paused_until = time.monotonic() + PAUSE * seconds
            except _Abandoned:
                self._done(None)
                with self._changed:
                    job.wanted.clear()
                continue
            except Exception as error:
                self._fail(error)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            with self._changed:
                if name in job.wanted:
                    job.wanted.remove(name)
                job.made.add(name)
                job.values[name] = value
                stale = self._stale(viewer, job)
            if not stale:
                redraw(viewer)
