"""`ns-train` and its kin show every error as a stack trace. One that the user can mend is one line, as elsewhere.

Not reported upstream: nerfstudio has no class of error for what the user can mend. Only commands that run one of our
methods are changed, since only our code raises `NifiError`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from nifi_ns.errors import NifiError


@dataclass(frozen=True)
class _OneLine:
    otherwise: Callable[[type[BaseException], BaseException, TracebackType | None], object]
    """The hook that shows all other errors."""

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, NifiError):
            print(f"error: {error}", file=sys.stderr)
        else:
            self.otherwise(kind, error, trace)


def install() -> None:
    """Let a `NifiError` that ends the program be one line, at an exit status of 1."""
    if not isinstance(sys.excepthook, _OneLine):
        sys.excepthook = _OneLine(sys.excepthook)
