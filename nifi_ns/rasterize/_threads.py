"""Threads that render one image together. Numba kernels release the GIL, so plain Python threads are enough.

Numba's own `parallel=True` is not used: its fallback scheduler aborts the process when two threads call it at once
(numba#8563), as a viewer and a trainer do.
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from nifi_ns.errors import NifiError

_WORTH_A_THREAD = 2000  # gaussians; below this, waking a thread costs more than it saves


@cache
def num_threads() -> int:
    """Return the number of rendering threads: `NIFI_RASTER_THREADS`, or the CPUs that the process may use."""
    if chosen := os.environ.get("NIFI_RASTER_THREADS"):
        if not chosen.isdecimal() or int(chosen) == 0:
            raise NifiError(f"NIFI_RASTER_THREADS is {chosen!r}: expected a number of threads, such as 2")
        return int(chosen)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads(), thread_name_prefix="nifi-rasterize")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def parts(n: int) -> list[tuple[int, int]]:
    """Return `(part, parts)` for each thread worth waking for `n` gaussians."""
    count = max(1, min(num_threads(), n // _WORTH_A_THREAD))
    return [(part, count) for part in range(count)]


def run(kernel: Callable[..., None], tasks: list[tuple[int, int]], *args: Any) -> None:
    """Call `kernel(*args, *task)` for each of `tasks` in parallel, and wait for all of them.

    The calling thread works too. On a busy machine it may finish before its helpers have started; then it does not wait
    for them.
    """
    queue = deque(tasks)

    def work() -> None:
        while queue:
            try:
                task = queue.popleft()
            except IndexError:  # all tasks are taken
                return
            kernel(*args, *task)

    helpers = [_pool().submit(work) for _ in range(min(num_threads(), len(tasks)) - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()
