"""A worker thread for the viewer: makes what its render threads need not wait for, and redraws when it is ready."""

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
"""Errors that a user can do something about: their message says it all."""

PAUSE = 3
"""While training changes what a resting camera sees, the worker pauses for this many times its last work's time."""


def render_thread() -> RenderStateMachine | None:
    """Return the viewer's render thread if the caller runs in one; each browser has its own."""
    thread = threading.current_thread()
    return thread if isinstance(thread, RenderStateMachine) else None


def is_moving(viewer: RenderStateMachine) -> bool:
    """Return whether the camera of `viewer` moves, or is about to."""
    upcoming = viewer.next_action
    return viewer.state != "high" or (upcoming is not None and upcoming.action in ("move", "rerender"))


def redraw(viewer: RenderStateMachine) -> None:
    """Have `viewer` draw its view again at full resolution, if its camera rests."""
    # a "step" is what training sends when there is something new to see; it is ignored while the camera moves
    viewer.action(RenderAction("step", viewer.viewer.get_camera_state(viewer.client)))


class _Abandoned(Exception):
    """Nobody waits for this work any more."""


@dataclass(eq=False)
class _Job:
    """What one viewer rests on, and which values of it have been made."""

    key: Hashable
    step: int
    source: object
    values: dict[str, Any]
    """By name; they may come from an earlier training step."""
    wanted: list[str] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)


class ViewerWorker:
    """Makes values for the viewer's render threads in a thread of its own, only for the newest view of each.

    It starts nothing while the camera moves, holds no lock of the viewer or the trainer, and leaves most of the time to
    training.
    """

    def __init__(
        self, begin: Callable[[], None], done: Callable[[float | None], None], fail: Callable[[BaseException], None]
    ) -> None:
        """
        Args:
            begin: called before a value is made.
            done: called with the seconds it took, or None if it was abandoned.
            fail: called with the error when a value cannot be made.
        """
        self._begin, self._done, self._fail = begin, done, fail
        self._changed = threading.Condition()
        self._jobs: WeakKeyDictionary[RenderStateMachine, _Job] = WeakKeyDictionary()
        self._thread: threading.Thread | None = None
        self._paused_until = 0.0
        self._current: tuple[RenderStateMachine, _Job] | None = None

    def get(self, viewer: RenderStateMachine, name: str, key: Hashable, step: int, source: object) -> Any:
        """Return a value if it has been made; else None, and the viewer draws again once it has.

        Args:
            viewer: the render thread.
            name: an attribute of `source`, which is computed when it is read.
            key: equal for views whose values are equal at the same training step.
            step: the training step. Values of an earlier step are returned until they are made again.
            source: what has the values of this view.
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
        """Make everything again: settings that are not part of the keys have changed."""
        with self._changed:
            self._jobs.clear()

    def check(self) -> None:
        """Abandon the current work if nobody waits for it. Long work calls this from time to time."""
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
                job.wanted.clear()  # the viewer asks again when its camera rests
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
