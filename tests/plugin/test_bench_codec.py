"""The codec benchmark, end to end on a tiny run, with this project's own writers of the other formats."""

from pathlib import Path

import pytest
from bench_codec import BenchCodec

from nifi_ns import results
from nifi_ns.errors import NifiError


def test_every_codec_is_measured_on_the_same_splats(run_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    BenchCodec(load_config=(run_config,), sizes=("2KB", "40KB"), steps=2, max_drop=3.0, output=output).main()
    rows = results.load(output)
    codecs = [r["codec"] for r in rows]
    assert {"ply", "sog", "spz", "compressed.ply", "nifi", "nifi fine-tuned", "sog decimated"} == set(codecs)
    assert all(r["bytes"] <= 1000 * int(r["target"][:-2]) for r in rows if r.get("target"))
    whole = {r["codec"]: r["bytes"] for r in rows if r["sh_degree"] == 0 and not r.get("target")}
    assert whole["nifi"] < whole["spz"] < whole["ply"]
    assert output.with_suffix(".png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"load_config": ()}, "at least one --load-config"),
        ({"sizes": ("1 mile",)}, "cannot read the size"),
        ({"peers": (".zip",)}, r"--peers \.zip is not one of"),
        ({"splat_transform": "/no/such/program"}, "cannot run --splat-transform /no/such/program: No such file"),
    ],
)
def test_says_what_is_wrong(run_config: Path, tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    options = {"load_config": (run_config,), "output": tmp_path / "results.json"} | wrong
    with pytest.raises(NifiError, match=message):
        BenchCodec(**options).main()  # pyright: ignore[reportArgumentType]
