"""The benchmark of restorers, end to end on tiny pairs."""

from pathlib import Path

import bench_restore
import pytest
from bench_restore import BenchRestore
from pair_folders import write_scene

from nifi_ns import results
from nifi_ns.errors import NifiError
from nifi_ns.restore import Restorer


@pytest.mark.filterwarnings("ignore")
def test_every_way_of_restoring_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ablations = ("as the defaults", "no matching", "encoder not adapted")
    monkeypatch.setattr(bench_restore, "_ABLATIONS", {name: bench_restore._ABLATIONS[name] for name in ablations})
    for rate in ("25KB", "60KB"):
        write_scene(tmp_path / "pairs", rate=rate, size=(96, 112), test=1, attended_photos=3)
    other = write_scene(tmp_path / "other", "other", size=(96, 112), test=1)
    bench = BenchRestore((other.root,), steps=1, work=tmp_path / "work", output=tmp_path / "results.json")
    bench.main()
    generic = tmp_path / "work" / "other" / "adapted"

    bench = BenchRestore((tmp_path / "pairs",), generic, steps=1, ablate=True, work=bench.work, output=bench.output)
    bench.main()
    rows = [row.flat() for row in results.load(bench.output)]
    guided = ["reference-guided", "guided, without photos"]
    ways = ["compressed", "unsharp mask and grain", "generic", "adapted", *guided, "referenced", "referenced + network"]
    ablated = ["as the defaults", "its latents decoded as a whole", *ablations[1:]]
    assert [r["way"] for r in rows] == 2 * ways + 2 * ablated[:2] + 2 * ablated[2:3] + 2 * ablated[3:]
    by_way = {r["way"]: r for r in rows if r["rate"] == "25KB"}
    kept = {name: Restorer.from_pretrained(bench.work / "toy" / name / "kept") for name in ("adapted", "guided")}
    assert [restorer.settings.attended_photos for restorer in kept.values()] == [0, 2]
    assert by_way["referenced"]["psnr"] > by_way["compressed"]["psnr"]
    assert by_way["unsharp mask and grain"]["psnr"] != by_way["compressed"]["psnr"]
    assert by_way["its latents decoded as a whole"]["psnr"] != by_way["as the defaults"]["psnr"]
    assert by_way["encoder not adapted"]["adapter_bytes"] < by_way["as the defaults"]["adapter_bytes"]
    assert all(by_way[name]["strength"] == 1.0 for name in ablated)
    assert (tmp_path / "results_toy_60KB.png").stat().st_size > 1000

    before = {path: path.stat().st_mtime_ns for path in bench.work.rglob("*.safetensors")}
    bench.main()
    assert {path: path.stat().st_mtime_ns for path in bench.work.rglob("*.safetensors")} == before


def test_says_what_is_wrong(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, test=0)
    with pytest.raises(NifiError, match="toy/25KB has no test views to measure"):
        BenchRestore((folder.root,)).main()
    with pytest.raises(NifiError, match="--steps is 0"):
        BenchRestore((folder.root,), steps=0).main()
