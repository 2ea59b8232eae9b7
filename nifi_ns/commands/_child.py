"""Run a command that dumps its stacks on SIGUSR1.

`python -X faulthandler -m nifi_ns.commands._child STACKS MODULE:FUNCTION NAME ARGS...` runs as if typed as
`NAME ARGS...`. On SIGUSR1 it appends the stacks of all threads to the file STACKS, even if it hangs in compiled code.
"""

import faulthandler
import signal
import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Register the signal handler and run the command."""
    stacks, target, *words = sys.argv[1:]
    faulthandler.register(signal.SIGUSR1, file=Path(stacks).open("w"), all_threads=True)  # noqa: SIM115 - for ever
    sys.argv = words
    module, _, function = target.partition(":")
    sys.exit(getattr(import_module(module), function)())


if __name__ == "__main__":
    main()
