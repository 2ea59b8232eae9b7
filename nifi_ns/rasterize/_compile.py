"""How kernels are compiled: once per machine, in nopython mode, without the GIL, into a cache.

A kernel has exactly one signature. Numba's cache may mix up two signatures of one function when two processes fill it
at the same time; with one, whatever they write is the same.
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
"""For what kernels call: becomes part of them."""

SAFE = frozenset({"reassoc", "contract", "nsz"})
"""Fast arithmetic that still sees what is degenerate."""
FAST = SAFE | {"arcp", "afn"}
"""The same with approximate reciprocals. Never `nnan` or `ninf`: masked-out pixels may overflow."""


def named(cls: type, *fields: Any) -> types.NamedTuple:
    """The Numba type of the named tuple `cls` with fields of these types."""
    return types.NamedTuple(fields, cls)


def kernel(*arguments: Any, returns: Any = types.void, fastmath: frozenset[str] = SAFE) -> Callable[..., Any]:
    """Compile the decorated function for these argument types, from the cache if it is there."""
    return compiled(returns(*arguments), nogil=True, fastmath=set(fastmath), error_model="numpy")
