"""The codec benchmark, end to end on a tiny run, with this project's own writers of the other formats."""

from pathlib import Path

import pytest
from bench_codec import BenchCodec

from nifi_ns import formats, results
from nifi_ns.errors import NifiError
from nifi_ns.plugin.runs import load_run


def test_every_codec_is_measured_on_the_same_splats(run_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    ply = tmp_path / "some.ply"
    formats.save(ply, load_run(run_config).uncompressed)
    BenchCodec(
        load_config=(run_config,),
        splats=(ply,),
        sizes=("2KB", "40KB"),
        steps=2,
        max_drop=3.0,
        ablate=True,
        output=output,
    ).main()
    rows = [row.flat() for row in results.load(output)]
    timed = [r for r in rows if "encode_seconds" in r]
    assert {r["codec"] for r in timed} == {"nifi coarse", "nifi fine"} and all(r["decode_seconds"] > 0 for r in timed)
    rows = [r for r in rows if r not in timed]
    ablations = [r for r in rows if r["codec"].startswith("nifi, ")]
    assert len({r["codec"] for r in ablations}) == 5 and {r["target"] for r in ablations} == {"2KB"}
    codecs = {r["codec"] for r in rows if r not in ablations}
    assert codecs == {"ply", "sog", "spz", "compressed.ply", "gsplat-png", "nifi", "nifi fine-tuned", "sog decimated"}
    assert all(r["bytes"] <= 1000 * int(r["target"][:-2]) for r in rows if r.get("target"))
    whole = {r["codec"]: r["bytes"] for r in rows if r["sh_degree"] == 0 and not r.get("target")}
    assert whole["nifi"] < whole["spz"] < whole["ply"]
    assert output.with_suffix(".png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"load_config": ()}, "at least one --load-config or --splats"),
        ({"sizes": ("1 mile",)}, "cannot read the size"),
        ({"peers": (".zip",)}, r"--peers \.zip is not one of"),
        ({"splat_transform": "/no/such/program"}, "cannot run --splat-transform /no/such/program: No such file"),
    ],
)
def test_says_what_is_wrong(run_config: Path, tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    options = {"load_config": (run_config,), "output": tmp_path / "results.json"} | wrong
    with pytest.raises(NifiError, match=message):
        BenchCodec(**options).main()  # pyright: ignore[reportArgumentType]
