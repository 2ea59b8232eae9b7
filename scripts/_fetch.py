"""Download large files over HTTP, in ranges and despite lost connections, and unpack them safely."""

import base64
import hashlib
import http.client
import io
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import atomic_path, write_text

ATTEMPTS = 6  # consecutive attempts without data
_CHUNK = 1 << 20
_READ_AHEAD = 1 << 22  # minimum bytes per request
_TIMEOUT = 30.0
_LOST = (OSError, http.client.HTTPException)
_Advance = Callable[[int], Any]


class RangesRefused(Exception):
    """The server sends only whole files."""


class RemoteFile(io.RawIOBase):
    """A seekable file on a server, read in ranges. Lost connections are retried.

    remotezip (0.12) also reads members in ranges, but it fails on a lost connection, restarts the member on the next
    try, and cannot recover if the connection broke before the first byte.
    """

    def __init__(self, url: str) -> None:
        """Request the first byte, to get the size.

        Raises:
            RangesRefused: if the server does not support ranges.
            NifiError: if it does not answer or does not have the file.
        """
        self._url, self._position, self._size = url, 0, 1
        self._read(1)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, as for any file."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read at least one byte unless at the end of the file."""
        data = self._read(min(len(buffer), self._size - self._position))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, count: int) -> bytes:
        if count <= 0:
            return b""
        why: object = "it ends too early"
        for attempt in range(ATTEMPTS):
            span = f"bytes={self._position}-{self._position + count - 1}"
            try:
                with _open(self._url, {"Range": span}) as response:
                    if response.status != 206:
                        raise RangesRefused(self._url)
                    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
                    if match is None or int(match[1]) != self._position:
                        raise RangesRefused(self._url)
                    self._size = int(match[2])
                    if data := _partial(response, count):
                        return data
            except _LOST as error:
                why = _give_up_on(self._url, error)
            time.sleep(_pause(attempt))
        raise NifiError(f"{self._url}: no connection, or none that lasts ({why}); start again later")


def _partial(response: Any, count: int) -> bytes:
    """Return up to `count` bytes that arrive before the connection ends."""
    data = b""
    while len(data) < count:
        try:
            more = response.read1(count - len(data))
        except _LOST:
            break
        if not more:
            break
        data += more
    return data


def download(url: str, target: Path, advance: _Advance = lambda _: None) -> None:
    """Download a whole file to `target`. A partial file is continued, also from an earlier call.

    The length and MD5 (Google's `x-goog-hash`) are checked if the server sends them. They detect damage, not forgery,
    since they come over the same connection; https protects against forgery. `advance` is called with byte counts.

    Raises:
        NifiError: if the server does not answer or does not have the file.
        CorruptFileError: if the MD5 does not match.
    """
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part, tag_file = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.etag")
    attempt, counted, furthest = 0, 0, 0
    why: object = "it ends too early"
    while attempt < ATTEMPTS:
        begun = part.stat().st_size if part.is_file() and tag_file.is_file() else 0
        conditions = {"Range": f"bytes={begun}-", "If-Range": tag_file.read_text()} if begun else {}
        try:
            with _open(url, conditions) as response:
                if response.status != 206:  # the whole file: it changed, or the server has no ranges
                    begun = 0
                    tag_file.unlink(missing_ok=True)
                    if (tag := response.headers.get("ETag", "W/")).startswith('"'):  # weak ETags do not identify bytes
                        write_text(tag_file, tag)
                size = begun + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
                advance(begun - counted)
                counted = begun
                with part.open("r+b" if begun else "wb") as file:
                    file.seek(begun)
                    while data := response.read1(_CHUNK):
                        file.write(data)
                        counted += len(data)
                        advance(len(data))
                if size in (None, counted):
                    _check_md5(part, response.headers.get_all("x-goog-hash") or ())
                    part.replace(target)
                    tag_file.unlink(missing_ok=True)
                    return
        except _LOST as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 416:  # longer than the server's file
                tag_file.unlink(missing_ok=True)
            else:
                why = _give_up_on(url, error)
        attempt = 0 if counted > furthest else attempt + 1
        furthest = max(furthest, counted)
        time.sleep(_pause(attempt))
    raise NifiError(f"{url}: no connection, or none that lasts ({why}); what arrived is kept: start again later")


def _check_md5(part: Path, hashes: Sequence[str]) -> None:
    expected = next(
        (entry[4:] for line in hashes for entry in re.split(r",\s*", line) if entry.startswith("md5=")), None
    )
    if expected is None:
        return
    with part.open("rb") as file:
        digest = hashlib.md5(usedforsecurity=False)
        while data := file.read(_CHUNK):
            digest.update(data)
    if base64.b64encode(digest.digest()).decode() != expected:
        part.unlink()
        raise CorruptFileError(f"{part} has another MD5 than the server's and is removed: start again")


@contextmanager
def _open(url: str, headers: dict[str, str]) -> Iterator[Any]:
    # without content encoding, because positions refer to the stored bytes
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", **headers})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        yield response


def _give_up_on(url: str, error: Exception) -> object:
    """Return the reason of a failure. Raises if retrying cannot help, because the file is missing or refused."""
    if isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code not in (408, 429):
        raise NifiError(f"{url}: the server says {error.code} {error.reason}") from error
    return getattr(error, "reason", error)


def _pause(attempt: int) -> float:
    return 0.2 * 2**attempt


@contextmanager
def open_zip(source: str, cache: Path, advance: _Advance = lambda _: None) -> Iterator[zipfile.ZipFile]:
    """Open a zip file on disk or on a server. Only the parts that are read are downloaded.

    If the server does not support ranges, the whole zip is downloaded to `cache` first.

    Raises:
        NifiError: if it cannot be read or downloaded.
        CorruptFileError: if it is not a zip file.
    """
    if re.match(r"https?://", source):
        try:
            file: Any = io.BufferedReader(RemoteFile(source), _READ_AHEAD)
        except RangesRefused:
            path = cache / source.rpartition("/")[2]
            download(source, path, advance)
            file = path.open("rb")
    elif Path(source).is_file():
        file = Path(source).open("rb")  # noqa: SIM115 - closed below
    else:
        raise NifiError(f"no such file: {source}")
    with file:
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise CorruptFileError(f"{source} is not a zip file: {error}") from error
        with archive:
            yield archive


def check_members(members: Sequence[zipfile.ZipInfo], max_bytes: float) -> None:
    """Refuse members that would be written outside the folder, are not plain files, or are too large in total.

    Raises:
        CorruptFileError: names the first such member.
    """
    for member in members:
        path = PurePosixPath(member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or re.search(r"[\\:\0]", member.filename):
            raise CorruptFileError(
                f"the archive's member {member.filename!r} would leave the folder; nothing is unpacked"
            )
        if kind not in (0, stat.S_IFREG) or member.is_dir():
            raise CorruptFileError(f"the archive's member {member.filename!r} is no plain file; nothing is unpacked")
    if (total := sum(member.file_size for member in members)) > max_bytes:
        raise CorruptFileError(
            f"{total / 1e9:.1f} GB would be unpacked, more than the {max_bytes / 1e9:.1f} GB of --max-gigabytes"
        )


def extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Write a member to `target` atomically, unless `target` already has its size and checksum.

    Raises:
        CorruptFileError: if the member is damaged.
    """
    if target.is_file() and target.stat().st_size == member.file_size and _crc(target) == member.CRC:
        return
    try:
        with archive.open(member) as source, atomic_path(target) as temporary, temporary.open("wb") as file:
            shutil.copyfileobj(source, file, _CHUNK)  # zipfile limits this to `file_size`
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise CorruptFileError(f"the archive's member {member.filename!r} is damaged: {error}") from error


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            value = zlib.crc32(data, value)
    return value
