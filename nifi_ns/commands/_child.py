"""`python -X faulthandler -m nifi_ns.commands._child STACKS MODULE:FUNCTION NAME ARGS...`: a command that can be asked.

It runs as if typed as `NAME ARGS...`, and on SIGUSR1 appends what each of its threads is doing to the file STACKS: also
when it hangs in compiled code, which a debugger in Python would wait for.
"""

import faulthandler
import signal
import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Register for the signal, then become the command."""
    stacks, target, *words = sys.argv[1:]
    faulthandler.register(signal.SIGUSR1, file=Path(stacks).open("w"), all_threads=True)  # noqa: SIM115 - for ever
    sys.argv = words
    module, _, function = target.partition(":")
    sys.exit(getattr(import_module(module), function)())


if __name__ == "__main__":
    main()
