"""The steps of `ns-nifi-selftest`. Each is tried twice, and all events are written to manifests at once."""

import json
import platform
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from nifi_ns.commands._watch import Ending, Limits, Outcome, watch
from nifi_ns.files import write_text
from nifi_ns.subprocesses import LOGGED

ATTEMPTS = 2

_ENVIRONMENT = {**LOGGED, "HF_HUB_OFFLINE": "1"}  # nothing is downloaded

# the first pattern that matches the end of a log applies, so specific ones come first
_ADVICE = (
    (r"CUDA out of memory|OutOfMemoryError", "free GPU memory (nvidia-smi lists its users) and start again"),
    (r"No space left on device", "free disk space, or give an --output-dir on another disk"),
    (r"Permission denied|Read-only file system", "give a writable --output-dir"),
    (r"CUDA error|cudaError|no kernel image", "check the driver with nvidia-smi; torch must be built for this GPU"),
    (r"No module named '(nifi_ns|nerfstudio|gsplat)", "install this package again: pip install . in a clone of it"),
    (r"No module named|cannot import name|undefined symbol", "packages do not match: use a new venv and pip check"),
    (r"MemoryError|Cannot allocate memory", "close other programs: the machine ran out of memory"),
    (r"(?m)^error: ", "follow the last line of the log"),
)
_ENDINGS: dict[Ending, str] = {
    "done": "it succeeded but wrote no result: see its log",
    "failed": "see the end of its log, and docs/troubleshooting.md",
    "silent": "it hung: see 'Python stacks' in the diagnostics",
    "late": "the machine is slow or busy: raise --time-limit, or see in the diagnostics what it was doing",
}


@dataclass(frozen=True)
class Step:
    """A command and the file that it writes on success."""

    name: str
    words: tuple[str, ...]
    result: Path
    target: str | None = None
    """Function to run, as "module:function"; by default the installed entry point of the command."""
    time_limit: float | None = None
    """Time limit in seconds, instead of the common limit."""


class Journal:
    """Runs steps in a folder and updates `run_manifest.json` and `selftest_manifest.json` there."""

    def __init__(self, folder: Path, limits: Limits, console: Console) -> None:
        self._folder, self._limits, self._console = folder, limits, console
        self._commands: list[dict[str, Any]] = []
        self._steps: list[dict[str, Any]] = []
        self._versions = _versions()

    def run(self, steps: Sequence[Step]) -> bool:
        """Run the steps until one fails twice. Return whether all passed."""
        self._steps = [{"step": step.name, "result": "NOT RUN"} for step in steps]
        self._write("UNFINISHED")
        for number, step in enumerate(steps):
            self._steps[number] = self._attempt(step)
            passed = self._steps[number]["result"] == "PASS"
            self._write("UNFINISHED" if passed else "FAIL")
            if not passed:
                return False
        self._write("PASS")
        return True

    def failure(self) -> dict[str, Any]:
        """Return the entry of the failed step."""
        return next(entry for entry in self._steps if entry["result"] == "FAIL")

    def _attempt(self, step: Step) -> dict[str, Any]:
        log = self._folder / "logs" / f"{step.name}.log"
        entry: dict[str, Any] = {"step": step.name, "result": "FAIL", "log": str(log.relative_to(self._folder))}
        self._console.print(f"[bold]{step.name}[/]: {shlex.join(step.words)}", soft_wrap=True)
        target = step.target or _entry_point(step.words[0])
        if target is None:
            entry["what_to_do"] = f"{step.words[0]} is not installed: pip install . in a clone of this package"
            return entry
        limits = Limits(step.time_limit or self._limits.time, self._limits.silence)
        for attempt in range(1, ATTEMPTS + 1):
            begins = log.stat().st_size if log.is_file() else 0
            diagnostics = self._folder / "diagnostics" / f"{step.name}_{attempt}.txt"
            started = datetime.now(timezone.utc).isoformat(timespec="seconds")
            step.result.unlink(missing_ok=True)
            with self._console.status(f"{step.name}, at most {limits.time / 60:.0f} minutes"):
                outcome = watch(
                    target,
                    step.words,
                    log=log,
                    diagnostics=diagnostics,
                    folder=self._folder,
                    limits=limits,
                    environment=_ENVIRONMENT,
                )
            what = {"step": step.name, "attempt": attempt, "command": list(step.words), "started": started}
            self._commands.append({**what, **asdict(outcome)})
            entry |= {"attempts": attempt, "seconds": outcome.seconds}
            if outcome.ending == "done" and step.result.is_file():
                entry["result"] = "PASS"
                again = " on the second attempt" if attempt > 1 else ""
                self._console.print(f"  [green]PASS[/]{again} in {outcome.seconds:.0f} s", highlight=False)
                if attempt > 1:
                    entry["what_to_do"] = "nothing, but it passed only on the second attempt: see diagnostics"
                return entry
            if outcome.ending != "done":
                entry.setdefault("diagnostics", []).append(str(diagnostics.relative_to(self._folder)))
            entry["what_to_do"] = _advice(outcome, log.read_bytes()[begins:].decode(errors="replace"))
            why = f"{outcome.ending}, exit code {outcome.exit_code}" if outcome.ending != "done" else "no result"
            self._console.print(f"  [red]{why}[/] after {outcome.seconds:.0f} s", highlight=False)
            self._write("UNFINISHED")
        return entry

    def _write(self, result: Literal["PASS", "FAIL", "UNFINISHED"]) -> None:
        failed = [entry for entry in self._steps if entry["result"] == "FAIL"]
        todo = failed[0]["what_to_do"] if failed else "nothing" if result == "PASS" else "start it again"
        verdict = {"result": result, "what_to_do": todo, "steps": self._steps}
        _write_json(self._folder / "selftest_manifest.json", verdict)
        _write_json(self._folder / "run_manifest.json", {"versions": self._versions, "commands": self._commands})


def _write_json(path: Path, document: dict[str, Any]) -> None:
    write_text(path, json.dumps(document, indent=1) + "\n")


def _entry_point(command: str) -> str | None:
    return next((point.value for point in entry_points(group="console_scripts", name=command)), None)


def _advice(outcome: Outcome, output: str) -> str:
    if outcome.exit_code == -9 and outcome.ending == "failed":
        return "it was killed, probably because memory ran out: close other programs and start again"
    end = "\n".join(output.splitlines()[-60:])
    if outcome.ending == "failed":
        for pattern, what in _ADVICE:
            if re.search(pattern, end):
                return what
    return _ENDINGS[outcome.ending]


def _versions() -> dict[str, str | None]:
    """Return the versions of Python, the system, this package and its requirements, without importing them."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    try:
        needed = [line for line in requires("nifi-ns") or [] if "extra ==" not in line]
    except PackageNotFoundError:
        needed = []
    for package in ("nifi-ns", *(re.split(r"[^\w.-]", line)[0] for line in needed)):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
