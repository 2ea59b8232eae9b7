"""The container of scene files (`.nifi`): magic, version, and chunks with a length and a checksum each.

    "NiFi"  4 bytes
    version 1 byte
    chunks, until the end of the file:
        kind      1 byte, an ASCII letter; readers skip unknown lower-case kinds
        length    varint
        payload   `length` bytes
        checksum  4 bytes, little endian: CRC-32 of kind, length and payload

A varint is an unsigned integer in groups of seven bits, lowest first, with the eighth bit set on all but the last byte.
A signed varint is folded first (0, -1, 1, -2, ... become 0, 1, 2, 3, ...). Floats are IEEE 754 binary32, little endian.
"""

import math
import struct
import zlib
from collections.abc import Iterator

from nifi_ns.errors import CorruptFileError

MAGIC = b"NiFi"
VERSION = 1


class Writer:
    """Builds a sequence of bytes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def unsigned(self, value: int) -> None:
        """Append an unsigned varint."""
        while value >= 0x80:
            self.data.append(value & 0x7F | 0x80)
            value >>= 7
        self.data.append(value)

    def signed(self, value: int) -> None:
        """Append a signed varint."""
        self.unsigned(2 * value if value >= 0 else -2 * value - 1)

    def float32(self, *values: float) -> None:
        """Append floats of four bytes each."""
        self.data += struct.pack(f"<{len(values)}f", *values)

    def bytes(self, data: bytes) -> None:
        """Append bytes unchanged."""
        self.data += data


class Reader:
    """Reads what `Writer` wrote. Raises `CorruptFileError` if the bytes end too early or a value is out of range."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def __bool__(self) -> bool:
        return self.position < len(self.data)

    def unsigned(self, most: int) -> int:
        """Read an unsigned varint of at most `most`."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.bytes(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            raise CorruptFileError("the scene file is damaged: a varint does not end")
        if value > most:
            raise CorruptFileError(f"the scene file is damaged: a number is {value}, expected at most {most}")
        return value

    def signed(self, most: int) -> int:
        """Read a signed varint of at most `most` in absolute value."""
        folded = self.unsigned(2 * most)
        return -(folded + 1) // 2 if folded & 1 else folded // 2

    def float32(self) -> float:
        """Read a finite float of four bytes."""
        (value,) = struct.unpack("<f", self.bytes(4))
        if not math.isfinite(value):
            raise CorruptFileError("the scene file is damaged: a number in its header is not finite")
        return value

    def bytes(self, length: int) -> bytes:
        """Read `length` bytes."""
        if length > len(self.data) - self.position:
            raise CorruptFileError("the scene file is truncated")
        self.position += length
        return self.data[self.position - length : self.position]


def write_file(chunks: list[tuple[str, bytes]]) -> bytes:
    """Return the file of the given (kind, payload) chunks."""
    data = bytearray(MAGIC)
    data.append(VERSION)
    for kind, payload in chunks:
        head = Writer()
        head.bytes(kind.encode("ascii"))
        head.unsigned(len(payload))
        data += head.data + payload + struct.pack("<I", zlib.crc32(payload, zlib.crc32(bytes(head.data))))
    return bytes(data)


def read_file(data: bytes) -> Iterator[tuple[str, bytes, int]]:
    """Yield each chunk of a file as (kind, payload, position after the chunk) after verifying its checksum.

    Raises:
        CorruptFileError: if `data` is not a scene file, or is of a later version, truncated or damaged.
    """
    reader = Reader(data)
    if len(data) < len(MAGIC) + 1 or reader.bytes(len(MAGIC)) != MAGIC:
        raise CorruptFileError('not a scene file: it does not start with "NiFi"')
    version = reader.bytes(1)[0]
    if version != VERSION:
        raise CorruptFileError(
            f"the scene file has version {version}, this nifi-ns reads version {VERSION}: update nifi-ns"
        )
    while reader:
        start = reader.position
        kind = reader.bytes(1)
        payload = reader.bytes(reader.unsigned(most=len(data)))
        checksum = zlib.crc32(data[start : reader.position])
        if struct.unpack("<I", reader.bytes(4))[0] != checksum:
            raise CorruptFileError("the scene file is damaged: a checksum does not match")
        yield kind.decode("latin-1"), payload, reader.position
