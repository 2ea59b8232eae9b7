"""How every command starts and fails: arguments by tyro, a `NifiError` on one line, an interrupt without a trace."""

import sys
from typing import Protocol


class Command(Protocol):
    """A dataclass of arguments with a `main`."""

    def main(self) -> None:
        """Do the work; raise `NifiError` for what the user can mend."""
        ...


def run(command: type[Command]) -> None:
    """Parse the command line into `command` and run it; what the user can mend becomes one line and exit status 1."""
    import tyro

    from nifi_ns.errors import NifiError

    arguments = tyro.cli(command)
    try:
        arguments.main()
    except NifiError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; finished results are kept")
