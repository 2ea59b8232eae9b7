import random
import struct
import time
import tracemalloc
from collections.abc import Iterator

import pytest
import torch
from splat_scenes import random_splats, rows

from nifi_ns.compress import BITS, decode, encode, info
from nifi_ns.compress.codec._container import MAGIC, Writer, read_file, write_file
from nifi_ns.compress.codec._scene import FREE_COUNT, MAX_PER_BYTE
from nifi_ns.errors import CorruptFileError
from nifi_ns.splats import Splats

DATA = encode(random_splats(40, 1), BITS["coarse"])
SAME = rows(decode(DATA))


def damaged(kind: str) -> Iterator[bytes]:
    if kind == "truncated":
        yield from (DATA[:length] for length in range(len(DATA)))
        return
    rng = random.Random(0)
    for _ in range(5000):
        data = bytearray(DATA)
        for _ in range(rng.choice((1, 1, 4))):
            at = rng.randrange(len(data))
            if kind == "flipped":
                data[at] ^= 1 << rng.randrange(8)
            else:
                data[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
        yield bytes(data)


@pytest.mark.parametrize("kind", ["truncated", "flipped", "overwritten"])
def test_damaged_files_are_refused_or_decode_unchanged(kind: str):
    refused = 0
    tracemalloc.start()
    for data in damaged(kind):
        try:
            decoded = decode(data)
        except CorruptFileError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            torch.testing.assert_close(rows(decoded), SAME, rtol=0, atol=0)
    assert refused > 300
    assert tracemalloc.get_traced_memory()[1] < 50e6  # one decoding takes a few MB
    tracemalloc.stop()


def test_a_file_cut_anywhere_but_after_a_level_is_refused():
    data = encode(random_splats(40, 1), BITS["coarse"], counts=[5, 10, 25])
    counts = {level.size: level.count for level in info(data).levels}
    for length in range(len(data) + 1):
        if length in counts:
            assert len(decode(data[:length])) == counts[length]
        else:
            with pytest.raises(CorruptFileError):
                decode(data[:length])


@pytest.mark.parametrize("step", [0.0, -1.0, 1e7, 3e38, float("inf"), float("nan")])
def test_steps_out_of_range_are_refused(step: float):
    grid = info(DATA).grid
    valid, invalid = (struct.pack("<2f", value, grid.quat_step) for value in (grid.scale_step, step))
    chunks = [(kind, payload.replace(valid, invalid)) for kind, payload, _ in read_file(DATA)]
    assert sum(invalid in payload for _, payload in chunks) == 1
    with pytest.raises(CorruptFileError, match=r"quantisers are out of range|not finite"):
        decode(write_file(chunks))


@pytest.mark.parametrize("seed", range(200))
def test_random_payloads_with_valid_checksums_decode_or_are_refused(seed: int):
    rng = random.Random(seed)
    chunks = []
    source = DATA if seed % 2 else encode(random_splats(40, 1), BITS["coarse"], counts=[5, 10, 25])
    for kind, payload, _ in read_file(source):
        changed = bytearray(payload)
        for _ in range(rng.choice((1, 3, 20))):
            at = rng.randrange(len(changed))
            changed[at : at + 1] = rng.randbytes(rng.choice((0, 1, 1, 2)))
        chunks.append((kind, bytes(changed)))
    data = write_file(chunks)
    try:
        declared = info(data).count
        if declared < 100_000:
            assert len(decode(data)) == declared
    except CorruptFileError:
        pass


def declaring(count: int) -> bytes:
    """Return a file of 40 gaussians whose header declares `count`."""
    writer = Writer()
    writer.unsigned(count)
    [(_, header, _), (_, level, _)] = read_file(DATA)
    assert header[:2] == bytes([1, 40])  # levels, gaussians
    return write_file([("H", header[:1] + bytes(writer.data) + header[2:]), ("L", level)])


@pytest.mark.parametrize("count", [2_000_000, (1 << 24) - 1, FREE_COUNT + MAX_PER_BYTE * (len(DATA) + 2) + 1])
def test_more_gaussians_than_the_bytes_can_hold_are_refused_at_once(count: int):
    data = declaring(count)
    tracemalloc.start()
    started = time.perf_counter()
    for reader in (decode, info):
        with pytest.raises(CorruptFileError, match=f"declares {count} gaussians in {len(data)} bytes"):
            reader(data)
    assert time.perf_counter() - started < 0.5
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def equal(count: int) -> Splats:
    return random_splats(1)[torch.zeros(count, dtype=torch.long)]


def lattice(side: int) -> Splats:
    splats, axis = equal(side**3), torch.arange(side).float()
    splats.means = torch.cartesian_prod(axis, axis, axis)
    return splats


@pytest.mark.parametrize(
    ("splats", "padded"),
    [(equal(FREE_COUNT), False), (equal(50_000), True), (lattice(40), False)],
    ids=["few", "equal", "lattice"],
)
@pytest.mark.parametrize("levels", [1, 3])
def test_files_with_too_few_bytes_for_their_gaussians_are_padded(splats: Splats, padded: bool, levels: int):
    count = len(splats)
    counts = [count] if levels == 1 else [count // 10, count // 5, count - count // 10 - count // 5]
    data = encode(splats, BITS["coarse"], counts=counts)
    for level in info(data).levels:
        assert len(decode(data[: level.size])) == level.count <= FREE_COUNT + MAX_PER_BYTE * level.size
    assert ("p" in [kind for kind, *_ in read_file(data)]) == padded
    assert not padded or len(data) < 1.01 * count / MAX_PER_BYTE


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a scene file"),
        (b"ply\nformat", "not a scene file"),
        (MAGIC + b"\x02" + DATA[5:], "version 2"),
        (MAGIC + b"\x01", "truncated"),
        (DATA + b"x", "truncated"),
        (write_file([("Q", b"")]), "unexpected chunk 'Q'"),
        (DATA + DATA[5:], "unexpected chunk 'H'"),
    ],
)
def test_errors_name_the_damage(data: bytes, message: str):
    for reader in (decode, info):
        with pytest.raises(CorruptFileError, match=message):
            reader(data)


def test_unknown_lower_case_chunks_are_skipped():
    extended = write_file([*((kind, payload) for kind, payload, _ in read_file(DATA)), ("t", b"a thumbnail")])
    torch.testing.assert_close(rows(decode(extended)), SAME, rtol=0, atol=0)
