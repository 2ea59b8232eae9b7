import csv
import io
import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from nifi_ns import results
from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.metrics import METRICS


def rows() -> list[results.Row]:
    compressed = {"psnr": 25.34, "ssim": 0.769, "haarpsi": 0.655, "gmsd": 0.135}
    restored = {"psnr": 25.30, "ssim": 0.770, "haarpsi": 0.655, "gmsd": 0.130}
    referenced = {"psnr": 29.38, "ssim": 0.866, "haarpsi": 0.812, "gmsd": 0.081}
    return [
        results.Row("fox", "compressed", bytes=25000, gaussians=3000, metrics=compressed),
        results.Row("fox", "restored", bytes=25000, gaussians=3000, metrics=restored, more={"seconds": 0.2}),
        results.Row("fox", "referenced", bytes=25000, gaussians=3000, metrics=referenced),
        results.Row("fox", "compressed", bytes=25000, gaussians=3000, metrics={"psnr": 11.11}, image="0001.jpg"),
    ]


def text(*args: results.Row, width: int = 200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(results.table(args))
    return console.export_text()


def test_rows_survive_saving_and_loading(tmp_path: Path) -> None:
    results.save(tmp_path / "demo" / "results.json", rows(), threads=2)
    assert results.load(tmp_path / "demo" / "results.json") == rows()
    document = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert document["environment"]["threads"] == 2
    assert document["rows"][0]["lpips"] is None


def test_the_csv_has_every_row_and_column(tmp_path: Path) -> None:
    results.save(tmp_path / "results.json", rows())
    with (tmp_path / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["variant"] for row in table] == ["compressed", "restored", "referenced", "compressed"]
    assert table[1]["seconds"] == "0.2" and table[0]["seconds"] == ""
    assert table[0]["psnr"] == "25.34" and table[0]["lpips"] == ""


def test_rows_without_bytes_are_grouped_by_rate() -> None:
    def row(variant: results.Variant, rate: str, psnr: float) -> results.Row:
        return results.Row("kodak", variant, bytes=None, gaussians=None, metrics={"psnr": psnr}, rate=rate)

    printed = text(
        row("compressed", "proxy-0.5", 28), row("restored", "proxy-0.5", 29), row("compressed", "proxy-1", 24)
    )
    lines = [line.split() for line in printed.splitlines() if "proxy" in line]
    assert lines == [
        ["kodak", "compressed", "proxy-0.5", "28.00"],
        ["kodak", "restored", "proxy-0.5", "29.00", "+1.00"],
        ["kodak", "compressed", "proxy-1", "24.00"],
    ]


def test_a_failed_save_does_not_change_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.save(path, rows())
    before = path.read_bytes()
    broken = results.Row("fox", "compressed", bytes=1, gaussians=1, metrics={"psnr": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        results.save(path, [broken])
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.csv", "results.json"]


def test_the_environment_names_versions_and_device_but_no_host_or_folder(tmp_path: Path) -> None:
    environment = results.current_environment()
    assert environment["python"] == platform.python_version()
    assert environment["torch"] and environment["device"]
    told = json.dumps(environment)
    assert platform.node() not in told and str(Path.cwd()) not in told and str(Path.home()) not in told


def test_the_table_shows_the_change_from_the_compressed_row() -> None:
    shown = text(*rows())
    assert "29.38 +4.04" in shown and "0.0810 -0.0540" in shown and "25.30 -0.04" in shown
    assert "11.11" not in shown, "rows of single images belong to the file, not to the table"
    assert "unavailable here: ms_ssim, swd, spectrum, lpips, dists" in shown


def test_the_table_fits_a_terminal_of_80_columns_without_truncation() -> None:
    free = {"psnr": 25.34, "ssim": 0.7691, "ms_ssim": 0.8991, "haarpsi": 0.6551, "gmsd": 0.1351}
    variants: list[results.Variant] = ["uncompressed", "compressed", "referenced"]
    table = [results.Row("garden", v, bytes=25000, gaussians=34567, metrics=free) for v in variants]
    table[-1] = replace(table[-1], metrics={**free, "gmsd": 0.0811})
    shown = text(*table, width=80)
    assert all(word in shown for word in (*variants, "25.0KB", "34,567", "25.34", "+0.00", "0.0811", "-0.0540"))
    assert "…" not in shown


def test_files_get_the_whole_table_and_terminals_name_the_omitted_metrics(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {name: 0.1234 for name in METRICS}
    table = [results.Row("garden", v, bytes=25000, gaussians=34567, metrics=values) for v in ("compressed", "restored")]
    monkeypatch.setenv("COLUMNS", "80")
    results.show(table)
    assert capsys.readouterr().out.count("0.1234") == 2 * len(METRICS) - 2  # PSNR has two digits
    monkeypatch.setenv("FORCE_COLOR", "1")
    results.show(table)
    shown = capsys.readouterr().out
    assert 0 < shown.count("0.1234") < 2 * len(METRICS) - 2
    assert "too wide to show here: " in shown and "spectrum" in shown


def test_uncompressed_splats_are_shown_once_for_all_rates() -> None:
    compressed = rows()[0]
    uncompressed = replace(compressed, variant="uncompressed", bytes=10**6)
    smaller = replace(compressed, bytes=9000)
    assert text(uncompressed, compressed, uncompressed, smaller).count("uncompressed") == 1


def test_improvements_are_green_even_if_lower_is_better() -> None:
    compressed, restored = rows()[:2]
    assert "[green]-0.0050" in results._cell("gmsd", restored, compressed)
    assert "[red]-0.04" in results._cell("psnr", restored, compressed)
    assert "[dim]+0.0000" in results._cell("haarpsi", restored, compressed)


def test_a_row_is_compared_only_at_equal_bytes() -> None:
    compressed, restored = rows()[:2]
    assert "-0.04" not in text(compressed, replace(restored, bytes=60000))


def test_unknown_variants_and_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown variant 'fixed'"):
        results.Row("fox", "fixed", bytes=1, gaussians=1, metrics={})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="unknown metrics \\['fid'\\]"):
        results.Row("fox", "compressed", bytes=1, gaussians=1, metrics={"fid": 1.0})


def test_files_that_are_not_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NifiError, match="no such file"):
        results.load(tmp_path / "none.json")
    good = rows()[0].flat()
    wrong = ({"bytes": "many"}, {"gaussians": 0.5}, {"psnr": "high"}, {"variant": "fixed"}, {"scene": 3}, {"rate": 25})
    typed = [json.dumps({"rows": [{**good, **change}]}) for change in wrong]
    for content in ("", "{}", '{"rows": [{"scene": "fox"}]}', "[]", '{"rows": [3]}', *typed):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(CorruptFileError, match=r"bad\.json does not hold results"):
            results.load(tmp_path / "bad.json")
