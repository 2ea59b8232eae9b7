"""`ns-*` commands show every error as a stack trace. With this repair, an error that the user can fix is one line.

Not reported upstream: nerfstudio has no error class for problems that the user can fix. Only commands that run one of
our methods are changed, because only our code raises `NifiError`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from nifi_ns.errors import NifiError


@dataclass(frozen=True)
class _OneLine:
    fallback: Callable[[type[BaseException], BaseException, TracebackType | None], object]
    """The hook for all other errors."""

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, NifiError):
            print(f"error: {error}", file=sys.stderr)
        else:
            self.fallback(kind, error, trace)


def install() -> None:
    """Print a `NifiError` that ends the program as one line; the exit status is 1."""
    if not isinstance(sys.excepthook, _OneLine):
        sys.excepthook = _OneLine(sys.excepthook)
