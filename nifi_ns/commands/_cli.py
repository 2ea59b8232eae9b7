"""How every command starts and fails: arguments by tyro, a `NifiError` on one line, an interrupt without a trace."""

import sys
import warnings
from collections.abc import Callable
from typing import Protocol


class Command(Protocol):
    """A dataclass of arguments with a `main`."""

    def main(self) -> None:
        """Do the work; raise `NifiError` for what the user can mend."""
        ...


def run(command: type[Command], default: Callable[[], Command] | None = None) -> None:
    """Parse the command line into `command` and run it; what the user can mend becomes one line and exit status 1.

    `default` makes the command whose values are the options' defaults, where they are not the class's own.
    """
    import tyro

    from nifi_ns.errors import NifiError

    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # nerfstudio's uses of torch, which no user can mend
    try:
        arguments = tyro.cli(command) if default is None else tyro.cli(command, default=default())
        arguments.main()
    except NifiError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; finished results are kept")
