"""`ns-train` and its kin show every error as a stack trace. One that the user can mend is one line, as elsewhere."""

import sys
from types import TracebackType

from nifi_ns.errors import NifiError

_excepthook = sys.excepthook


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, NifiError):
        print(f"error: {error}", file=sys.stderr)
    else:
        _excepthook(kind, error, trace)


def install() -> None:
    """Let a `NifiError` that ends the program be one line, at an exit status of 1."""
    sys.excepthook = _say
