"""Pictures that come late: what a viewer's render thread does not wait for is made beside it, and shown when ready."""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine

from nifi_ns.errors import NifiError
from nifi_ns.plugin.lazy_outputs import LazyOutputs

EXPECTED = (NifiError, OSError, torch.cuda.OutOfMemoryError)
"""Errors that a user can do something about: their message says it all."""

REST = 3
"""While training changes what a resting camera sees, its views are made anew after so many times what they took."""


def render_thread() -> RenderStateMachine | None:
    """The viewer's render thread, one for each browser that looks, if this is such a thread."""
    thread = threading.current_thread()
    return thread if isinstance(thread, RenderStateMachine) else None


def is_moving(viewer: RenderStateMachine) -> bool:
    """Whether the camera of `viewer` moves, or is about to."""
    coming = viewer.next_action
    return viewer.state != "high" or (coming is not None and coming.action in ("move", "rerender"))


def redraw(viewer: RenderStateMachine) -> None:
    """Have `viewer` draw its view again, at once and in full, if it rests there."""
    # what training sends when there is something new to see: ignored while the camera moves
    viewer.action(RenderAction("step", viewer.viewer.get_camera_state(viewer.client)))


class _Stale(Exception):
    """Nobody waits for this any more."""


@dataclass(eq=False)
class _View:
    """What a viewer rests on, and what of it is there already."""

    ident: Hashable
    step: int
    recipes: LazyOutputs
    values: dict[str, Any]
    """By name; may come from an earlier step of training."""
    wanted: list[str] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    shown: set[str] = field(default_factory=set)


class Late:
    """Makes values for render threads, in a thread of its own, of nothing but the newest view of each.

    It begins nothing while the camera moves, holds no lock of the viewer or the trainer, and leaves most of the time to
    a training.
    """

    def __init__(
        self, begin: Callable[[], None], done: Callable[[float | None], None], fail: Callable[[BaseException], None]
    ) -> None:
        """
        Args:
            begin: called before a value is made.
            done: called with the seconds that it took, or None if it was given up.
            fail: called with the error when a value cannot be made.
        """
        self._begin, self._done, self._fail = begin, done, fail
        self._changed = threading.Condition()
        self._views: WeakKeyDictionary[RenderStateMachine, _View] = WeakKeyDictionary()
        self._thread: threading.Thread | None = None
        self._rest_until = 0.0
        self._at_work: tuple[RenderStateMachine, _View] | None = None

    def get(self, viewer: RenderStateMachine, name: str, ident: Hashable, step: int, recipes: LazyOutputs) -> Any:
        """The value `name` of what `viewer` shows, or None, in which case it is made and the viewer draws again.

        Args:
            viewer: the render thread.
            name: one of the recipes.
            ident: equal for views of which the values are the same, but for what a training changes.
            step: of training. What an earlier step gave is shown until it is made anew.
            recipes: how the values of this view are made.
        """
        with self._changed:
            view = self._views.get(viewer)
            if view is None or view.ident != ident:
                view = self._views[viewer] = _View(ident, step, recipes, {})
            elif view.step != step and name in view.shown and not view.wanted and time.monotonic() > self._rest_until:
                view = self._views[viewer] = _View(ident, step, recipes, view.values)
            if name in view.made:
                view.shown.add(name)
            elif name not in view.wanted:
                view.wanted.append(name)
                self._wake()
            return view.values.get(name)

    def forget(self) -> None:
        """Make everything anew: the settings that are no part of `ident` have changed."""
        with self._changed:
            self._views.clear()

    def check(self) -> None:
        """To be called now and then by what makes values: raises, in the thread that makes them, if nobody waits."""
        if threading.current_thread() is self._thread and self._at_work is not None and self._stale(*self._at_work):
            raise _Stale

    def _stale(self, viewer: RenderStateMachine, view: _View) -> bool:
        return self._views.get(viewer) is not view or not viewer.running or is_moving(viewer)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="nifi-late", daemon=True)
            self._thread.start()
        self._changed.notify()

    def _next(self) -> tuple[RenderStateMachine, _View, str] | None:
        for viewer, view in list(self._views.items()):
            if self._stale(viewer, view):
                view.wanted.clear()  # asked for again when the camera rests
            elif view.wanted:
                return viewer, view, view.wanted[0]
        return None

    def _work(self) -> None:
        while True:
            with self._changed:
                while (found := self._next()) is None:
                    self._changed.wait()
                viewer, view, name = found
                self._at_work = viewer, view
            value, started = None, time.perf_counter()
            try:
                self._begin()
                with torch.no_grad():
                    value = view.recipes[name]
                seconds = time.perf_counter() - started
                self._done(seconds)
                self._rest_until = time.monotonic() + REST * seconds
            except _Stale:
                self._done(None)
                with self._changed:
                    view.wanted.clear()
                continue
            except Exception as error:
                self._fail(error)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            with self._changed:
                if name in view.wanted:
                    view.wanted.remove(name)
                view.made.add(name)
                view.values[name] = value
                stale = self._stale(viewer, view)
            if not stale:
                redraw(viewer)
