"""Commands for the selftest's tests: each does one thing that a step may do, well or badly."""

import sys
import threading
import time
from pathlib import Path


def passes() -> None:
    """Write the result."""
    print("working")
    Path(sys.argv[1]).write_text("result")


def hangs() -> None:
    """Wait for a lock that nobody releases, with a thread and a process beside."""
    import subprocess

    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(sys.argv[1]).with_suffix(".pid").write_text(str(helper.pid))
    threading.Thread(target=_sleeps, daemon=True).start()
    _waits_for_ever(threading.Lock())


def _sleeps() -> None:
    time.sleep(600)


def _waits_for_ever(lock: threading.Lock) -> None:  # pyright: ignore[reportGeneralTypeIssues] - a function in 3.10
    lock.acquire()
    lock.acquire()


def fails_once() -> None:
    """The first attempt ends with an error."""
    result = Path(sys.argv[1])
    if result.with_suffix(".tried").exists():
        return passes()
    result.with_suffix(".tried").touch()
    raise RuntimeError("the first attempt")


def needs_a_disk() -> None:
    """Both attempts end as on a full disk."""
    raise OSError(28, "No space left on device")


def crashes() -> None:
    """End by a segmentation fault."""
    import faulthandler

    faulthandler._sigsegv()  # type: ignore[attr-defined]


def works_in_silence() -> None:
    """Compute, in a child process, for longer than the limit of silence; then write the result."""
    import subprocess

    code = "import time; end = time.monotonic() + 3.5\nwhile time.monotonic() < end: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    Path(sys.argv[1]).write_text("result")


def chatters() -> None:
    """Write a line from time to time, for ever."""
    while True:
        print("still here")
        time.sleep(0.2)


def forgets() -> None:
    """End well, without a result."""
