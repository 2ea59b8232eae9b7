"""Atomic writes, hashes of inputs, and human-readable sizes."""

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nifi_ns.errors import NifiError

_UNITS = {"": 1, "B": 1, "K": 10**3, "KB": 10**3, "M": 10**6, "MB": 10**6, "KIB": 2**10, "MIB": 2**20}


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, remove it if it raises.

    The temporary path keeps the suffixes of `path`, because libraries choose the format by them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    # created here, so that no other process can; mkstemp would deny access to other users and groups
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def fingerprint(*made_of: object, files: Iterable[Path] = ()) -> str:
    """Return a hash of the inputs of a result: if it has not changed, the result need not be computed again.

    Args:
        made_of: bytes, hashed directly, and other values, hashed by their `repr`.
        files: files, hashed by name, size and modification time.
    """
    digest = hashlib.sha256()
    for part in made_of:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    for file in files:
        status = file.stat()
        digest.update(repr((file.name, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def parse_size(text: str) -> int:
    """Parse a size such as `60KB`, `0.36MB` or `220000` to bytes. K and M are decimal, KiB and MiB binary.

    Raises:
        NifiError: if `text` is not a positive size.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise NifiError(f"cannot read the size {text!r}: write it like 60KB, 0.36MB or 220000")
    size = round(float(match[1]) * _UNITS[match[2].upper()])
    if size <= 0:
        raise NifiError(f"the size is {text!r}, expected more than 0")
    return size


def format_size(size: int) -> str:
    """Format a size in decimal units, as papers do: `60.0KB`, `1.31MB`."""
    if size >= 10**6:
        return f"{size / 10**6:.2f}MB"
    return f"{size / 10**3:.1f}KB" if size >= 10**3 else f"{size}B"
