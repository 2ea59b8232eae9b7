"""`ns-nifi-report` on a tiny run: the page's content, and that it loads no other files."""

import json
import re
from pathlib import Path

import pytest
import torch
from tiny_runs import copy_run

from nifi_ns import metrics, results
from nifi_ns.commands.eval import Eval
from nifi_ns.commands.report import Report
from nifi_ns.compress import BITS, decode, encode
from nifi_ns.errors import NifiError
from nifi_ns.plugin.runs import load_run


def test_the_page_contains_numbers_pictures_and_commands(
    own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["ns-nifi-report", "--load-config", str(own_run)])
    Report(own_run, views=1).main()
    text = (own_run.parent / "nifi" / "report.html").read_text()
    assert not re.search(r"(src|href)=.(?!data:|#)", text)  # nothing is fetched
    views = json.loads(re.search(r"const views = (.*);\n", text)[1])  # pyright: ignore[reportOptionalSubscript]
    assert len(views) == len({view["rate"] for view in views}) >= 1
    kinds = {"photo", "uncompressed", "compressed", "referenced", "change by referenced"}
    assert kinds <= views[0]["pictures"].keys()
    assert list(views[0]["pictures"])[:3] == ["photo", "uncompressed", "compressed"]  # in the order of the menu
    assert all(url.startswith("data:image/jpeg;base64,") for url in views[0]["pictures"].values())
    for words in ("<td>compressed</td>", "bits per gaussian", "ns-train", "ns-nifi-report --load-config", "<svg"):
        assert words in text
    other = tmp_path / "elsewhere.html"
    Report(own_run, other, views=1).main()
    assert other.stat().st_size > 10_000


def test_current_results_are_not_measured_again(
    run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = copy_run(run_config, tmp_path / "runs")
    run, data = load_run(config), (config.parent / "nifi" / "4KB" / "scene.nifi").read_bytes()
    Eval((run.save_scene(data, "4KB"),), tmp_path / "eval.json").main()
    compute, measured = metrics.compute, []
    monkeypatch.setattr(metrics, "compute", lambda *a, **b: measured.append(a) or compute(*a, **b))
    Report(config, results=tmp_path / "eval.json", views=1).main()
    assert not measured
    page = (config.parent / "nifi" / "report.html").read_text()
    mean = next(r for r in results.load(tmp_path / "eval.json") if r.variant == "compressed" and r.image is None)
    assert f'<td class="">{mean.metrics["psnr"]:.2f}</td>' in page
    run.save_scene(encode(decode(data)[torch.arange(50)], BITS["coarse"]), "4KB")
    Report(config, results=tmp_path / "eval.json", views=1).main()
    assert measured


def test_wrong_arguments_are_refused(run_config: Path, tmp_path: Path) -> None:
    with pytest.raises(NifiError, match=r"--output .* must end in \.html"):
        Report(run_config, tmp_path / "report.pdf").main()
    with pytest.raises(NifiError, match="no such file"):
        Report(run_config, results=tmp_path / "absent.json").main()
    with pytest.raises(NifiError, match="--views is 0"):
        Report(run_config, views=0).main()
