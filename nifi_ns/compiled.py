"""Compile functions with numba once per machine, and again when the code around them changes.

Numba's cache checks only the file of the function that Python calls. If a function or constant in another file
changed, the old code would still run, and could decode scene files wrongly. Here the cache folder is named after the
contents of all files in the function's folder. Kernels may use anything from files in their own folder, but nothing
from other folders of this package.
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
_SETTING = "CACHE_DIR"  # NUMBA_CACHE_DIR; accessed by name because type checkers do not see numba's settings
_UNUSED_SECONDS = 30 * 24 * 3600
_lock = threading.Lock()


def compiled(*signature: Any, **options: Any) -> Callable[..., Any]:
    """Decorate a function with `numba.njit(*signature, **options)` and cache the result.

    The cache is in NUMBA_CACHE_DIR if that is set, else beside the source, else (if that folder is not writable) in the
    user's cache. If none is writable, every process compiles again, which takes a few seconds.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        with _lock:
            chosen = getattr(config, _SETTING)
            folder = _cache_folder(Path(function.__code__.co_filename).parent, chosen)
            if folder is None:
                return numba.njit(*signature, **options)(function)
            setattr(config, _SETTING, str(folder))  # numba reads it only while decorating
            try:
                return numba.njit(*signature, cache=True, **options)(function)
            finally:
                setattr(config, _SETTING, chosen)

    return decorate


def _remove_unused(parent: Path, folder: Path) -> None:
    # Other installations may share the cache, so only folders that none has used for a long time are removed. Numba
    # creates a removed folder again if a running process needs it.
    with contextlib.suppress(OSError):
        os.utime(folder)
    for other in set(parent.glob(f"{_PREFIX}*")) - {folder}:
        with contextlib.suppress(OSError):
            if time.time() - other.stat().st_mtime > _UNUSED_SECONDS:
                shutil.rmtree(other, ignore_errors=True)


@functools.cache
def _cache_folder(sources: Path, chosen: str) -> Path | None:
    # the cache folder for the current contents of `sources`; None if no folder is writable
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
