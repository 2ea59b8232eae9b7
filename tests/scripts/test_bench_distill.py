"""The benchmark of repairs in training, end to end on a tiny capture."""

import csv
from pathlib import Path

import pytest
from bench_distill import BenchDistill
from tiny_runs import save_restorer

from nifi_ns import results
from nifi_ns.errors import NifiError
from nifi_ns.plugin.distill.distillation import DistillationConfig


def test_every_row_is_trained_as_long_and_measured(tiny_capture: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    bench = BenchDistill(
        data=tiny_capture,
        views=4,
        sizes=("4KB",),
        steps=12,
        compression_steps=6,
        restorer=save_restorer(tmp_path / "restorer"),
        dropout=0.2,
        distill=DistillationConfig(steps=(4, 8), views_per_step=2),
        work=tmp_path / "work",
        output=output,
    )
    bench.main()
    rows = [row.flat() for row in results.load(output)]
    for rate in ("full", "4KB"):
        assert [(r["training"], r["teacher"], r["post_fix"]) for r in rows if r["rate"] == rate] == [
            ("plain", None, None),
            ("plain", None, "references"),
            ("plain", None, "restorer"),
            ("dropout", None, None),
            ("dropout", None, "references"),
            ("dropout", None, "restorer"),
            ("one", "references", None),
            ("progressive", "references", None),
            ("progressive", "references", "references"),
            ("one", "restorer", None),
            ("progressive", "restorer", None),
            ("progressive", "restorer", "restorer"),
        ]
    assert all(r["views"] == 4 and r["psnr"] > 5 for r in rows)
    assert all(r["bytes"] <= 4000 for r in rows if r["rate"] == "4KB")
    with output.with_suffix(".csv").open() as file:
        assert len(list(csv.DictReader(file))) == 24
    runs = sorted((tmp_path / "work").glob("*/nifi-splat-lite/*"))
    assert len(runs) == 12
    repaired = {
        run.name.rpartition("-")[0]: len(list(run.glob("nifi/distill/step_*"))) for run in runs if "KB" not in run.name
    }
    assert repaired == {"plain": 0, "dropout": 0, "one": 1, "progressive": 2}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*/*/*/*/step-*.ckpt")}
    bench.main()
    assert before == {path: path.stat().st_mtime_ns for path in before}  # nothing is trained again


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": Path("/no/such/capture")}, "no capture at /no/such/capture"),
        ({"steps": 1}, "expected 10 or more"),
        (
            {"distill": DistillationConfig(teacher="restorer", restorer=Path("folder"))},
            "name the restorer as --restorer",
        ),
        ({"sizes": ("1 mile",)}, "cannot read the size"),
    ],
)
def test_says_what_is_wrong(tiny_capture: Path, tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    options = {"data": tiny_capture, "output": tmp_path / "results.json"} | wrong
    with pytest.raises(NifiError, match=message):
        BenchDistill(**options).main()  # pyright: ignore[reportArgumentType]
