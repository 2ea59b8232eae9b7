"""The threads that share one image: Numba kernels release the GIL, so plain Python threads are enough."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any


@cache
def num_threads() -> int:
    """How many threads draw: `NIFI_RASTER_THREADS`, or as many as the process may use CPUs."""
    if chosen := os.environ.get("NIFI_RASTER_THREADS"):
        return max(1, int(chosen))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads(), thread_name_prefix="nifi-rasterize")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def run(kernel: Callable[..., None], ranges: list[tuple[int, int]], *args: Any) -> None:
    """Call `kernel(*args, first, last)` for each of `ranges`, side by side, and wait for all of them.

    The calling thread takes the last range itself: with one range no other thread is woken.
    """
    if not ranges:
        return
    others = [_pool().submit(kernel, *args, first, last) for first, last in ranges[:-1]]
    kernel(*args, *ranges[-1])
    for other in others:
        other.result()
