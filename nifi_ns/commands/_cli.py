"""How every command starts and fails: arguments by tyro, a `NifiError` on one line, an interrupt without a trace."""

import sys
import warnings
from collections.abc import Callable
from typing import Any, Protocol


class Command(Protocol):
    """A dataclass of arguments with a `main`."""

    def main(self) -> None:
        """Do the work; raise `NifiError` for what the user can mend."""
        ...


def run(command: Any, default: Callable[[], Command] | None = None, *, description: str | None = None) -> None:
    """Parse the command line into `command` and run it; what the user can mend becomes one line and exit status 1.

    So does a package that is missing where somebody installed the codec alone.

    Args:
        command: a `Command`, or the union of several that are subcommands.
        default: makes the command whose values are the options' defaults, where they are not the class's own.
        description: the help's first lines; by default the docstring of `command`.
    """
    from nifi_ns.errors import NifiError

    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore", FutureWarning)  # nerfstudio's uses of torch, which no user can mend
            parse(command, default, description).main()
    except NifiError as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "nifi_ns":
            raise
        sys.exit(f"error: {error.name} is not installed: this command needs all that pip install nifi-ns brings")
    except KeyboardInterrupt:
        sys.exit("interrupted; finished results are kept")


def parse(command: Any, default: Callable[[], Command] | None = None, description: str | None = None) -> Command:
    """Return the command that the command line asks for; see `run`.

    Raises:
        NifiError: if a value is outside of its range.
        SystemExit: if tyro does not understand the command line, or was asked for help.
    """
    import tyro

    start: dict[str, Any] = {} if default is None else {"default": default()}
    # an option that may be None is one that may be left out: nobody types None
    return tyro.cli(command, description=description, config=(tyro.conf.DisallowNone,), **start)
