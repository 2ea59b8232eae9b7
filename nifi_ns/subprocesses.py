"""End programs together with all processes they started."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

import psutil

LOGGED = {
    "COLUMNS": "160",
    "PYTHONWARNINGS": "ignore",
    "OMP_WAIT_POLICY": "passive",  # busy-waiting threads slow a loaded laptop down tenfold
}
"""Environment variables for commands whose output goes to a log."""


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants, the process first; empty if it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def end(
    process: "subprocess.Popen[bytes]",
    requests: Sequence[signal.Signals] = (signal.SIGTERM,),
    patience: float = 5.0,
) -> None:
    """End a process that was started in a new session, and its descendants: first with `requests`, then by SIGKILL.

    Args:
        process: the process; its exit status is set afterwards.
        requests: signals to send one after the other while it runs.
        patience: seconds to wait after each signal.
    """
    tree = process_tree(process.pid) if process.poll() is None else []
    try:
        for request in requests:
            if process.poll() is not None:
                break
            _signal_all(process, tree, request)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)  # psutil's wait would consume the exit status
        psutil.wait_procs(tree[1:], timeout=patience)
    finally:  # also after a second Ctrl-C
        _signal_all(process, tree, signal.SIGKILL)
        process.wait()


def _signal_all(process: "subprocess.Popen[bytes]", tree: Sequence[psutil.Process], number: signal.Signals) -> None:
    # to the session, even if its leader has ended, and to descendants that left the session
    with suppress(ProcessLookupError, PermissionError):  # no process is left (macOS raises the latter for zombies)
        os.killpg(process.pid, number)
    for member in tree:
        with suppress(psutil.Error, OSError):
            if os.getpgid(member.pid) != process.pid:  # a second signal would interrupt its clean-up
                member.send_signal(number)
