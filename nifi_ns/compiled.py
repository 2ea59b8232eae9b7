"""Numba functions that are compiled once per machine and anew when the code around them changes.

Numba's cache looks at the file of the function called from Python only: what that function calls or reads from other
files could change without its being compiled again, and a scene file would then be decoded by an older coder. Here the
cache's folder is named after the contents of every file in the function's own folder, so that kernels may use anything
that lies beside them (and nothing of ours that does not).
"""

import contextlib
import functools
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import config

_PREFIX = "kernels-"
_SETTING = "CACHE_DIR"  # of NUMBA_CACHE_DIR; Numba makes its settings at run time, unseen by type checkers
_UNUSED_SECONDS = 30 * 24 * 3600
_lock = threading.Lock()


def compiled(*signature: Any, **options: Any) -> Callable[..., Any]:
    """Decorate with `numba.njit(*signature, **options)`, cached.

    The cache is beside the source; in NUMBA_CACHE_DIR, if that is set; or in the user's cache, if the source's folder
    is not writable. If nothing is, every process compiles anew, which takes some seconds.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        with _lock:
            chosen = getattr(config, _SETTING)
            folder = _cache_folder(Path(function.__code__.co_filename).parent, chosen)
            if folder is None:
                return numba.njit(*signature, **options)(function)
            setattr(config, _SETTING, str(folder))  # read when a function is decorated, and never again
            try:
                return numba.njit(*signature, cache=True, **options)(function)
            finally:
                setattr(config, _SETTING, chosen)

    return decorate


def _remove_unused(parent: Path, folder: Path) -> None:
    # Other installations may share the cache: only what none of them has used for a long time goes. Numba makes a
    # folder again that was removed under its feet.
    with contextlib.suppress(OSError):
        os.utime(folder)
    for other in set(parent.glob(f"{_PREFIX}*")) - {folder}:
        with contextlib.suppress(OSError):
            if time.time() - other.stat().st_mtime > _UNUSED_SECONDS:
                shutil.rmtree(other, ignore_errors=True)


@functools.cache
def _cache_folder(sources: Path, chosen: str) -> Path | None:
    # where kernels of the files in `sources` as they are now are kept; None if nothing can be written
    digest = hashlib.sha256()
    for file in sorted(sources.glob("*.py")):
        data = file.read_bytes()
        digest.update(f"{file.name} {len(data)}\n".encode() + data)
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nifi_ns" / sources.name
    for parent in [Path(chosen) / "nifi_ns" / sources.name] if chosen else [sources / "__pycache__", user]:
        folder = parent / f"{_PREFIX}{digest.hexdigest()[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            _remove_unused(parent, folder)
            return folder
    return None
