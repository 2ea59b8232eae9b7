"""Parse arguments with tyro and run a command. Errors of the user and interrupts end it with one line."""

import sys
import warnings
from collections.abc import Callable
from typing import Any, Protocol


class Command(Protocol):
    """A dataclass of arguments with a `main`."""

    def main(self) -> None:
        """Run the command. Raises `NifiError` for errors that the user can fix."""
        ...


def run(command: Any, default: Callable[[], Command] | None = None, *, description: str | None = None) -> None:
    """Parse the command line into `command` and run it.

    A `NifiError` prints one line and exits with status 1. So does a missing package, if only the codec is installed.

    Args:
        command: a `Command`, or a union of subcommands.
        default: returns a command with the default values; by default the class's own.
        description: first lines of the help; by default the docstring of `command`.
    """
    from nifi_ns.errors import NifiError

    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore", FutureWarning)  # from nerfstudio's use of torch
            parse(command, default, description).main()
    except NifiError as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "nifi_ns":
            raise
        sys.exit(f"error: {error.name} is not installed: this command needs all dependencies, pip install nifi-ns")
    except KeyboardInterrupt:
        sys.exit("interrupted; finished results are kept")


def parse(command: Any, default: Callable[[], Command] | None = None, description: str | None = None) -> Command:
    """Return the parsed command; see `run`.

    Raises:
        NifiError: if a value is out of range.
        SystemExit: if the command line is invalid or asks for help.
    """
    import tyro

    start: dict[str, Any] = {} if default is None else {"default": default()}
    # hide None as a value: such options are simply omitted
    return tyro.cli(command, description=description, config=(tyro.conf.DisallowNone,), **start)
