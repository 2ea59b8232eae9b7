"""Run any codec: a command that writes renders, photos, and the files that its decoder needs."""

import shlex
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nifi_ns.compress.external._external import ExternalCodec, model_folder
from nifi_ns.errors import NifiError


@dataclass(frozen=True)
class CommandSettings:
    """What to run, and where its results are. Paths are relative to {output}, the folder that the command writes to."""

    command: str = ""
    """Program and arguments, quoted as in a shell. {data} and {output} are replaced by the two folders."""
    renders: str = "{split}/renders"
    """Folder of the renders. {split} is replaced by test and train; train is optional."""
    photos: str = "{split}/gt"
    """Folder of the photos, with the same names and sizes as the renders."""
    bytes_of: tuple[str, ...] = ()
    """All files that the decoder needs, as paths or patterns with * and **. The rate is the sum of their sizes."""
    rate: str = "default"
    """Name of the rate in pairs and tables."""


def command(settings: CommandSettings, data: Path, output: Path) -> ExternalCodec:
    """Return the codec described by `settings`, ready for `external.run` in `output`.

    Raises:
        NifiError: if a setting is missing or invalid.
    """
    try:
        words = shlex.split(settings.command)
    except ValueError as error:
        raise NifiError(f"--command {settings.command!r} cannot be read: {error}") from error
    if not words or not settings.bytes_of:
        raise NifiError("give --command (what to run) and --bytes-of (the files a decoder needs)")
    if "{split}" not in settings.renders or "{split}" not in settings.photos:
        raise NifiError("--renders and --photos must contain {split}, which is replaced by test and train")
    if any(Path(pattern).is_absolute() for pattern in settings.bytes_of):
        raise NifiError(f"--bytes-of {' '.join(settings.bytes_of)}: give paths relative to {{output}}")
    if settings.rate in ("", ".", "..") or any(c in settings.rate for c in "/\\\0"):
        raise NifiError(f"--rate is {settings.rate!r}, expected a plain name: it becomes the name of a folder")
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
    """Return the bytes of all files in `folder` that match any of `patterns`.

    Raises:
        NifiError: if a pattern matches no file.
    """
    found: set[Path] = set()
    for pattern in patterns:
        files = {path.resolve() for path in folder.glob(pattern) if path.is_file()}
        if not files:
            raise NifiError(f"--bytes-of {pattern} matches no file in {folder}: name every file the decoder needs")
        found |= files
    return sum(file.stat().st_size for file in found)


def _check(program: str, data: Path) -> None:
    if shutil.which(program) is None:
        raise NifiError(f"--command: the program {program!r} is not on PATH")
    if not data.exists():
        raise NifiError(f"no such --data: {data}")
