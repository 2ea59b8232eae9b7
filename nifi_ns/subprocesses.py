"""Programs that are ended together with all that they have started."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

import psutil

LOGGED = {
    "COLUMNS": "160",
    "PYTHONWARNINGS": "ignore",
    "OMP_WAIT_POLICY": "passive",  # threads that spin while they wait slow a busy laptop down tenfold
}
"""Variables for commands whose output goes into a log."""


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants, the process first; none once it is gone."""
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
    """End a process that was started in a session of its own, with its descendants: asked first, then forced.

    Args:
        process: its exit status is there afterwards.
        requests: signals to ask it with, one after the other, while it runs.
        patience: seconds to wait after each of them.
    """
    tree = process_tree(process.pid) if process.poll() is None else []
    try:
        for request in requests:
            if process.poll() is not None:
                break
            _signal_all(process, tree, request)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)  # not by psutil, which would take the exit status
        psutil.wait_procs(tree[1:], timeout=patience)
    finally:  # also after a second Ctrl-C
        _signal_all(process, tree, signal.SIGKILL)
        process.wait()


def _signal_all(process: "subprocess.Popen[bytes]", tree: Sequence[psutil.Process], number: signal.Signals) -> None:
    # to the session, whose leader may be gone, and to those who have left it
    with suppress(ProcessLookupError, PermissionError):  # nobody is left (macOS says the latter of a zombie)
        os.killpg(process.pid, number)
    for one in tree:
        with suppress(psutil.Error, OSError):
            if os.getpgid(one.pid) != process.pid:  # twice would interrupt its clean-up
                one.send_signal(number)
