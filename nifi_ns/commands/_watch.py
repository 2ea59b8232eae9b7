"""Run commands under supervision: stop them if they take too long or hang, and write diagnostics to a file.

A command hangs when it is *silent*: it writes nothing, and it and its descendants use less than 1 % of a core. Busy
work without output is not silent. The time limit ends endless loops.
"""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from nifi_ns.subprocesses import end, process_tree

_POLL_SECONDS = 0.5
_PATIENCE = 5.0  # seconds to wait for stacks to be written, and for processes to end by themselves
_BUSY = 0.01

Ending = Literal["done", "failed", "silent", "late"]


@dataclass(frozen=True)
class Limits:
    """Maximum duration and silence of a command, in seconds."""

    time: float
    silence: float


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    ending: Ending
    exit_code: int
    """Negative: the number of the signal that ended it."""
    seconds: float
    peak_memory: int
    """Bytes used by the command and its descendants, sampled twice per second."""


def watch(
    target: str,
    words: Sequence[str],
    *,
    log: Path,
    diagnostics: Path,
    folder: Path,
    limits: Limits,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Run the function `target` ("module:function") with the command line `words` in a new process.

    Args:
        log: file that the output is appended to.
        diagnostics: file written if the command fails: processes, stacks, memory, GPU, files.
        folder: the command's output folder; `diagnostics` lists its newest files.
        environment: additional environment variables.
    """
    stacks = diagnostics.with_suffix(".stacks")
    stacks.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-X", "faulthandler", "-m", "nifi_ns.commands._child", str(stacks), target, *words]
    started = time.monotonic()
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=True,
        )
    ending: Ending | None = None
    peak = 0
    try:
        alive_at, written, used = started, -1, 0.0
        while ending is None:
            now = time.monotonic()
            tree = process_tree(process.pid)
            peak = max(peak, sum(_memory(p) for p in tree))
            size, cpu = log.stat().st_size, _cpu_seconds(tree)
            if size != written or abs(cpu - used) >= _BUSY * limits.silence:
                alive_at, written, used = now, size, cpu
            if process.poll() is not None:
                ending = "done" if process.returncode == 0 else "failed"
            elif now - started > limits.time:
                ending = "late"
            elif now - alive_at > limits.silence:
                ending = "silent"
            else:
                _wait(process, _POLL_SECONDS)
        seconds = time.monotonic() - started
        if ending != "done":
            _diagnose(diagnostics, process, ending, stacks, log, folder)
    finally:
        end(process, patience=_PATIENCE)
        stacks.unlink(missing_ok=True)
    return Outcome(ending, process.returncode, round(seconds, 1), peak)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _memory(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def _cpu_seconds(tree: Sequence[psutil.Process]) -> float:
    """Return the CPU seconds used so far by the processes and their ended children."""
    total = 0.0
    for process in tree:
        with suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)


def _diagnose(
    path: Path, process: subprocess.Popen[bytes], ending: Ending, stacks: Path, log: Path, folder: Path
) -> None:
    """Write diagnostics of a command that hangs or has failed."""
    tree = process_tree(process.pid) if process.poll() is None else []
    shown = "\n".join(_describe(tree)) or "(it has ended)"
    if tree:
        _signal(tree[0], signal.SIGUSR1)
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and not (stacks.is_file() and stacks.stat().st_size):
            time.sleep(0.1)
        time.sleep(0.2)  # for the rest of the threads
    written = stacks.read_text(errors="replace") if stacks.is_file() else ""
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(folder)
    sections = {
        "ended": f"{ending}, exit code {process.poll()}",
        "processes": shown,
        "Python stacks": written or "(none; stacks of a crash are at the end of the log)",
        "memory": f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB are available",
        "disk": f"{disk.free / 1e9:.1f} of {disk.total / 1e9:.1f} GB are free",
        "load": f"{os.getloadavg()} on {os.cpu_count()} cores, {platform.platform()}",
        "GPU": _gpu(),
        "newest files": "\n".join(_newest(folder)),
        "end of the log": "\n".join(log.read_text(errors="replace").splitlines()[-40:]),
    }
    path.write_text("".join(f"== {title}\n{text.rstrip()}\n\n" for title, text in sections.items()))


def _describe(tree: Sequence[psutil.Process]) -> Iterator[str]:
    for process in tree:
        try:
            with process.oneshot():
                times = process.cpu_times()
                yield (
                    f"{process.pid} (parent {process.ppid()}) {process.status()}, {times.user + times.system:.1f} s of "
                    f"CPU, {process.memory_info().rss / 1e6:.0f} MB, {process.num_threads()} threads: "
                    + " ".join(process.cmdline())
                )
        except psutil.Error as error:
            yield f"{process.pid}: {error}"


def _gpu() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "(no nvidia-smi)"
    try:
        finished = subprocess.run([program], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    return finished.stdout + finished.stderr


def _newest(folder: Path, count: int = 20) -> Iterator[str]:
    now = time.time()
    found = []
    for file in folder.rglob("*"):
        try:
            stat = file.stat()
        except OSError:  # the file was just renamed
            continue
        if file.is_file():
            found.append((stat.st_mtime, stat.st_size, file))
    for changed, size, file in sorted(found, reverse=True)[:count]:
        yield f"{now - changed:8.0f} s ago {size:12,} bytes  {file.relative_to(folder)}"
