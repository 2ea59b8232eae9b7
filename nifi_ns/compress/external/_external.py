"""Run codecs that are separate programs: commands in their own environments that write renders and bitstreams.

Nothing of such a codec is imported. It is measured by its renders, because many do not decode to plain gaussians.

`<output>/` holds `log.txt` (everything the command prints), `run.json` (the command, and whether it finished) and
`model/` (what the command writes). A finished run is not repeated; an unfinished one starts over.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nifi_ns.errors import NifiError
from nifi_ns.files import write_text
from nifi_ns.subprocesses import end
from nifi_ns.views import Split

_GRACE_SECONDS = 10.0
"""How long an interrupted command may take to end before it is killed."""
_IMAGES = (".png", ".jpg", ".jpeg")
_BAR = re.compile(r"(?P<stage>[^|:]*):\s*\d+%\|[^|]*\|\s*(?P<done>\d+)/(?P<total>\d+)\s*\[(?P<note>[^\]]*)\]?")
_LOSS = re.compile(r"\bloss\b\s*[=:]?\s*([-+0-9.e]+)", re.IGNORECASE)


@dataclass(frozen=True)
class ExternalCodec:
    """How to run a codec on one scene at one rate, and where its results are."""

    name: str
    """Name of the codec in messages, such as `HAC++`."""
    scene: str
    rate: str
    """Name of the rate in tables, such as `hacpp-0.5`. A plain folder name."""
    command: tuple[str, ...]
    """The program and its arguments. All paths are absolute."""
    pictures: Mapping[Split, tuple[Path, Path]]
    """Folders of renders and of photos by split, with the same file names in both. `test` is required."""
    count_bytes: Callable[[str], int]
    """Returns the bytes that a decoder needs, from the written files and the text of the log. Raises NifiError if the
    two disagree."""
    check: Callable[[], None] = lambda: None
    """Raises NifiError if the command cannot work. Called before anything is written."""
    directory: Path | None = None
    """Working directory of the command."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables for the command, in addition to those of this process."""


@dataclass(frozen=True)
class Step:
    """The progress of a command, read from its progress bar."""

    stage: str
    done: int
    total: int
    loss: float | None


def parse_step(line: str) -> Step | None:
    """Parse a tqdm line: `Training progress:  33%|###  | 100/300 [00:12<00:24, 8it/s, Loss=0.03]`."""
    match = _BAR.search(line)
    if match is None:
        return None
    loss = _LOSS.search(match["note"])
    try:
        value = None if loss is None else float(loss[1].rstrip("."))
    except ValueError:
        value = None
    return Step(match["stage"].strip(), int(match["done"]), int(match["total"]), value)


def model_folder(output: Path) -> Path:
    """Return the folder that the command of a run in `output` writes to, absolute and without links."""
    return output.resolve() / "model"


def run(codec: ExternalCodec, output: Path) -> bool:
    """Run `codec` with its log and state in `output`, unless a finished run is there. Return whether it was run.

    Raises:
        NifiError: if `output` cannot be used or holds another run, or if a check or the command fails.
        KeyboardInterrupt: after the command and all processes it started have ended.
    """
    state = output / "run.json"
    if _finished(codec, output):
        return False
    codec.check()
    try:
        output.mkdir(parents=True, exist_ok=True)
        # files of an interrupted run would be mistaken for those of the next
        shutil.rmtree(model_folder(output), ignore_errors=True)
        _write_state(state, codec, "started")
        with (output / "log.txt").open("wb") as log:
            status = _stream(codec, log)
    except OSError as error:
        raise NifiError(f"cannot run {codec.name} with --output {output}: {error}") from error
    if status:
        tail = " / ".join(_last_lines(read_log(output))) or "it printed nothing"
        ended = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        raise NifiError(f"{codec.name} ended {ended}: {tail}; the full log is {output / 'log.txt'}")
    _write_state(state, codec, "finished")
    return True


def read_log(output: Path) -> str:
    """Return everything the command printed; empty if there is no log."""
    path = output / "log.txt"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def find_pictures(codec: ExternalCodec) -> dict[Split, dict[str, tuple[Path, Path]]]:
    """Return the files of each view's render and photo, by split and view. Splits without renders are omitted.

    Raises:
        NifiError: if `test` has no renders, or renders and photos have different names.
    """
    found: dict[Split, dict[str, tuple[Path, Path]]] = {}
    for split, folders in codec.pictures.items():
        renders, photos = ({p.stem: p for p in _images(folder)} for folder in folders)
        if unmatched := sorted(renders.keys() ^ photos.keys()):
            name = unmatched[0]
            has, lacks = folders if name in renders else folders[::-1]
            raise NifiError(f"{codec.name} wrote {name} to {has} but not to {lacks}: every render needs a photo")
        if renders:
            found[split] = {name: (renders[name], photos[name]) for name in sorted(renders)}
    if "test" not in found:
        raise NifiError(f"{codec.name} wrote no renders to {codec.pictures['test'][0]}: there is nothing to measure")
    return found


def _images(folder: Path) -> Iterator[Path]:
    return (p for p in folder.glob("*") if p.suffix.lower() in _IMAGES)


def _finished(codec: ExternalCodec, output: Path) -> bool:
    """Return whether `output` holds this run, finished; raise NifiError if it holds anything else."""
    state = output / "run.json"
    if output.exists() and not output.is_dir():
        raise NifiError(f"--output {output} is a file, expected a folder")
    if not state.is_file():
        if output.is_dir() and any(output.iterdir()):
            raise NifiError(f"--output {output} holds other files: give a new or empty folder")
        return False
    try:
        before: dict[str, Any] = json.loads(state.read_text(encoding="utf-8"))
        command, status = tuple(before["command"]), before["status"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NifiError(f"{state} cannot be read ({error!r}): remove {output}, or give another --output") from error
    if command != codec.command:
        raise NifiError(f"--output {output} holds a run with other settings ({state}): give another folder")
    return status == "finished"


def _write_state(path: Path, codec: ExternalCodec, status: str) -> None:
    content = {"codec": codec.name, "scene": codec.scene, "rate": codec.rate, "status": status}
    write_text(path, json.dumps(content | {"command": codec.command}, indent=1) + "\n")


def _stream(codec: ExternalCodec, log: IO[bytes]) -> int:
    """Run the command, write its output to `log`, show its progress, and return its exit status."""
    # in a new session: Ctrl-C reaches only this process, and everything the command starts can be ended with it
    process = subprocess.Popen(
        codec.command,
        cwd=codec.directory,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **codec.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    try:
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), transient=True) as progress:
            task = progress.add_task(codec.name, total=None, loss="")
            rest = b""
            while data := os.read(process.stdout.fileno(), 1 << 16):
                log.write(data)
                log.flush()
                *lines, rest = re.split(rb"[\r\n]+", rest + data)
                # a bar is complete once the next one begins; the last complete one is the newest
                steps = [step for line in lines if (step := parse_step(line.decode(errors="replace")))]
                if steps:
                    step, loss = steps[-1], ""
                    if step.loss is not None:
                        loss = f"loss {step.loss:.4f}"
                    name = f"{codec.name}: {step.stage}"
                    progress.update(task, description=name, completed=step.done, total=step.total, loss=loss)
        return process.wait()
    finally:
        end(process, (signal.SIGINT, signal.SIGTERM), _GRACE_SECONDS)
        process.stdout.close()


def _last_lines(text: str, count: int = 3) -> list[str]:
    """Return the last lines that are neither empty nor progress bars."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text[-20_000:])]
    return [line for line in lines if line and _BAR.search(line) is None][-count:]
