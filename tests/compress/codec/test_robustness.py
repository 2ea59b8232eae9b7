import random
import struct
import tracemalloc
from collections.abc import Iterator

import pytest
import torch
from splat_scenes import random_splats, rows

from nifi_ns.compress import PRESETS, decode, encode, info
from nifi_ns.compress.codec._container import MAGIC, read_file, write_file
from nifi_ns.errors import CorruptFileError

DATA = encode(random_splats(40, 1), PRESETS["coarse"])
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
def test_damage_is_noticed_or_harmless(kind: str):
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


def test_a_file_cut_anywhere_but_behind_a_level_is_refused():
    data = encode(random_splats(40, 1), PRESETS["coarse"], counts=[5, 10, 25])
    counts = {level.size: level.count for level in info(data).levels}
    for length in range(len(data) + 1):
        if length in counts:
            assert len(decode(data[:length])) == counts[length]
        else:
            with pytest.raises(CorruptFileError):
                decode(data[:length])


@pytest.mark.parametrize("step", [0.0, -1.0, 1e7, 3e38, float("inf"), float("nan")])
def test_absurd_steps_are_refused(step: float):
    grid = info(DATA).grid
    honest, lie = (struct.pack("<2f", value, grid.quat_step) for value in (grid.scale_step, step))
    chunks = [(kind, payload.replace(honest, lie)) for kind, payload, _ in read_file(DATA)]
    assert sum(lie in payload for _, payload in chunks) == 1
    with pytest.raises(CorruptFileError, match=r"quantisers make no sense|not finite"):
        decode(write_file(chunks))


@pytest.mark.parametrize("seed", range(200))
def test_lies_with_right_checksums_are_survived(seed: int):
    rng = random.Random(seed)
    chunks = []
    source = DATA if seed % 2 else encode(random_splats(40, 1), PRESETS["coarse"], counts=[5, 10, 25])
    for kind, payload, _ in read_file(source):
        lie = bytearray(payload)
        for _ in range(rng.choice((1, 3, 20))):
            at = rng.randrange(len(lie))
            lie[at : at + 1] = rng.randbytes(rng.choice((0, 1, 1, 2)))
        chunks.append((kind, bytes(lie)))
    data = write_file(chunks)
    try:
        claimed = info(data).count
        if claimed < 100_000:
            assert len(decode(data)) == claimed
    except CorruptFileError:
        pass


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
def test_says_what_is_wrong(data: bytes, message: str):
    for reader in (decode, info):
        with pytest.raises(CorruptFileError, match=message):
            reader(data)


def test_later_editions_may_add_chunks_that_can_be_skipped():
    extended = write_file([*((kind, payload) for kind, payload, _ in read_file(DATA)), ("t", b"a thumbnail")])
    torch.testing.assert_close(rows(decode(extended)), SAME, rtol=0, atol=0)
