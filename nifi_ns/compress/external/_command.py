"""Any codec: a command that writes renders, photos and the files a decoder needs."""

import shlex
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nifi_ns.compress.external._external import ExternalCodec, model_folder
from nifi_ns.errors import NifiError


@dataclass(frozen=True)
class CommandSettings:
    """What to run, and where its results are. Paths are relative to {output}, the folder the command writes to."""

    command: str = ""
    """A program and its arguments, as a shell would have them; {data} and {output} stand for the two folders."""
    renders: str = "{split}/renders"
    """Where its renders are; {split} stands for test and train, and train may be missing."""
    photos: str = "{split}/gt"
    """Where the photos of the same names and sizes are."""
    bytes_of: tuple[str, ...] = ()
    """Files, with * and ** if need be, that a decoder needs: their sizes are added up."""
    rate: str = "default"
    """What pairs and tables call its rate."""


def command(settings: CommandSettings, data: Path, output: Path) -> ExternalCodec:
    """Return the codec that `settings` describe, to be run in `output` by `external.run`.

    Raises:
        NifiError: if something was not given or cannot be read.
    """
    try:
        words = shlex.split(settings.command)
    except ValueError as error:
        raise NifiError(f"--command {settings.command!r} cannot be read: {error}") from error
    if not words or not settings.bytes_of:
        raise NifiError("give --command (what to run) and --bytes-of (the files a decoder needs)")
    if "{split}" not in settings.renders or "{split}" not in settings.photos:
        raise NifiError("--renders and --photos must have {split} in them, which stands for test and train")
    if any(Path(pattern).is_absolute() for pattern in settings.bytes_of):
        raise NifiError(f"--bytes-of {' '.join(settings.bytes_of)}: give paths relative to what --command writes to")
    if settings.rate in ("", ".", "..") or any(c in settings.rate for c in "/\\\0"):
        raise NifiError(f"--rate {settings.rate!r} must be a plain name: it is that of a folder")
    model, data = model_folder(output), data.resolve()
    program = tuple(word.replace("{data}", str(data)).replace("{output}", str(model)) for word in words)

    def folder(pattern: str, split: str) -> Path:
        return model / pattern.replace("{split}", split)

    return ExternalCodec(
        name=Path(program[0]).name,
        scene=data.name,
        rate=settings.rate,
        command=program,
        pictures={
            "train": (folder(settings.renders, "train"), folder(settings.photos, "train")),
            "test": (folder(settings.renders, "test"), folder(settings.photos, "test")),
        },
        count_bytes=lambda log: count_bytes(model, settings.bytes_of),
        check=partial(_check, program[0], data),
    )


def count_bytes(folder: Path, patterns: tuple[str, ...]) -> int:
    """Return the bytes of all files in `folder` that match any of `patterns`; NifiError if one matches none."""
    found: set[Path] = set()
    for pattern in patterns:
        files = {path.resolve() for path in folder.glob(pattern) if path.is_file()}
        if not files:
            raise NifiError(f"--bytes-of {pattern} names no file in {folder}: every byte a decoder needs must be there")
        found |= files
    return sum(file.stat().st_size for file in found)


def _check(program: str, data: Path) -> None:
    if shutil.which(program) is None:
        raise NifiError(f"--command: no program {program!r} on PATH")
    if not data.exists():
        raise NifiError(f"no such --data: {data}")
