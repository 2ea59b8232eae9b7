"""The benchmark of inference: that arithmetic is counted right, with and without content."""

import json
from pathlib import Path

import pytest
from bench_inference import BenchInference

from nifi_ns.errors import NifiError


def test_the_miniature_is_timed_and_the_real_ones_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench_inference._MATRIX", {"cpu": 256})
    output = tmp_path / "bench.json"
    BenchInference(("nifi-tiny", "sd-turbo"), width=128, height=64, device="cpu", output=output).main()
    tiny, turbo = json.loads(output.read_text())["rows"]
    assert tiny["ms"] > tiny["floor_ms"] > 0 and tiny["flop"] > 1e8
    assert turbo["ms"] is None
    BenchInference(("sd-turbo",), width=256, height=64, device="cpu", output=output).main()
    (twice,) = json.loads(output.read_text())["rows"]
    assert twice["flop"] == pytest.approx(2 * turbo["flop"], rel=0.05)


def test_says_what_is_wrong() -> None:
    with pytest.raises(NifiError, match="64 or more"):
        BenchInference(width=32).main()
