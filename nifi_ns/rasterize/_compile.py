"""Compilation of the kernels: in nopython mode, without the GIL, cached on disk.

Each kernel has exactly one signature. When two processes fill Numba's cache at the same time, it may mix up two
signatures of one function; with one signature, both write the same.
"""

from collections.abc import Callable
from typing import Any

from numba import njit, types

from nifi_ns.compiled import compiled

boolean, int32, int64, real = types.boolean, types.int32, types.int64, types.float64
f1, f2, f3, f4 = (types.Array(types.float32, dimensions, "C") for dimensions in (1, 2, 3, 4))
i1, i3 = types.Array(int32, 1, "C"), types.Array(int32, 3, "C")
d1, d3, d4 = (types.Array(real, dimensions, "C") for dimensions in (1, 3, 4))

inline = njit(inline="always")
"""Decorator for functions that kernels call: they are inlined."""

SAFE = frozenset({"reassoc", "contract", "nsz"})
"""Fast-math flags that keep NaN and infinity checks valid."""
FAST = SAFE | {"arcp", "afn"}
"""`SAFE` with approximate reciprocals. Never `nnan` or `ninf`: masked-out pixels may overflow."""


def named(cls: type, *fields: Any) -> types.NamedTuple:
    """Return the Numba type of the named tuple `cls` with fields of these types."""
    return types.NamedTuple(fields, cls)


def kernel(*arguments: Any, returns: Any = types.void, fastmath: frozenset[str] = SAFE) -> Callable[..., Any]:
    """Return a decorator that compiles a function for these argument types, or loads it from the cache."""
    return compiled(returns(*arguments), nogil=True, fastmath=set(fastmath), error_model="numpy")
