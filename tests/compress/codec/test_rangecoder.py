import zlib

import numpy as np
import pytest

from nifi_ns.compress.codec._rangecoder import MAX_BITS, NODES, RATES, SQUASH, STRETCH, RangeCoder, code_symbol


def coded(symbols: np.ndarray, contexts: np.ndarray, bits: int, data: bytes | None = None) -> tuple[bytes, np.ndarray]:
    """Encode symbols, or decode `data`, with two models: one without context, one with `contexts` (below 8)."""
    coder = RangeCoder(data, bits=bits * len(symbols))
    chances, counts = np.full(9 * NODES, 32768), np.zeros(9 * NODES, dtype=np.int64)
    weights = np.full((MAX_BITS, 2), 32768)
    out = np.zeros_like(symbols)
    for i, symbol in enumerate(symbols):
        slots = NODES * np.array([0, 1 + contexts[i]])
        args = coder.state, coder.buffer, coder.decoding, symbol, bits, chances, counts, slots, weights
        out[i] = code_symbol(*args)
    return (b"" if coder.decoding else coder.finish()), out


def entropy(symbols: np.ndarray) -> float:
    _, counts = np.unique(symbols, return_counts=True)
    return float(-(counts * np.log2(counts / len(symbols))).sum() / 8)


@pytest.mark.parametrize("bits", [0, 1, 5, 8, 12, 24])
def test_symbols_survive_a_round_trip(bits: int):
    rng = np.random.default_rng(bits)
    symbols, contexts = rng.integers(0, 1 << bits, 500), rng.integers(0, 8, 500)
    data, _ = coded(symbols, contexts, bits)
    assert (coded(np.zeros_like(symbols), contexts, bits, data)[1] == symbols).all()


def test_the_size_is_close_to_the_entropy():
    rng = np.random.default_rng(0)
    symbols = np.clip(rng.normal(8, 1.5, 4000).round().astype(np.int64), 0, 15)
    data, _ = coded(symbols, np.zeros_like(symbols), 4)
    assert entropy(symbols) * 0.99 < len(data) < entropy(symbols) * 1.03


def test_contexts_are_learned():
    rng = np.random.default_rng(0)
    contexts = rng.integers(0, 8, 4000)
    symbols = 2 * contexts + (rng.random(4000) < 0.1)
    data, _ = coded(symbols, contexts, 4)
    assert len(data) < 0.3 * entropy(symbols)


def test_certain_symbols_cost_nothing():
    zeros = np.zeros(2000, dtype=np.int64)
    assert len(coded(zeros, zeros, 3)[0]) < 10


def test_missing_and_random_bytes_decode_to_symbols_in_range():
    contexts = np.zeros(300, dtype=np.int64)
    for data in (b"", b"\xff", bytes(range(256))):
        symbols = coded(contexts, contexts, 6, data)[1]
        assert ((symbols >= 0) & (symbols < 64)).all()


def test_tables_are_the_same_everywhere():
    # if exp or log rounded differently on another machine, files could not be decoded there
    assert zlib.crc32(SQUASH.tobytes() + STRETCH.tobytes() + RATES.tobytes()) == 855051694
