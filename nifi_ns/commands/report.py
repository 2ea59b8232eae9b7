"""`ns-nifi-report`: write an HTML file about a run with sizes, metrics, and held-out views before and after."""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nifi_ns.commands._cli import run
from nifi_ns.commands._scenes import describe
from nifi_ns.errors import NifiError

if TYPE_CHECKING:
    from nifi_ns.plugin.runs import Run
    from nifi_ns.results import Row


@dataclass
class Report:
    """Measure every scene file of a run, and write an HTML file with metrics and views to compare."""

    load_config: Path
    """The run's config.yml."""
    output: Path | None = None
    """The file to write; by default nifi/report.html in the run's folder."""
    results: Path | None = None
    """Results written by ns-nifi-eval; by default eval.json in the current folder, if it exists. Results whose inputs
    did not change are reused, and the rest is measured."""
    views: int = 4
    """Number of held-out views to show, evenly spread."""

    def main(self) -> None:
        """Measure and write the page."""
        from nifi_ns import results
        from nifi_ns.compress import info
        from nifi_ns.files import write_text
        from nifi_ns.plugin.evaluation import evaluate, evaluated_from, pictures
        from nifi_ns.plugin.runs import load_run
        from nifi_ns.report import Report as Page
        from nifi_ns.report import ReportView, render_report
        from nifi_ns.views import spaced_views

        if self.views < 1:
            raise NifiError(f"--views is {self.views}, expected at least 1")
        if self.output is not None and self.output.suffix != ".html":
            raise NifiError(f"--output {self.output} must end in .html")
        known = self._known_rows()
        first = load_run(self.load_config)
        nifi = first.folder / "nifi"
        configs = sorted(nifi.glob("*/scene.nifi"), key=lambda path: -path.stat().st_size)
        if not configs:
            raise NifiError(f"no scene files in {nifi}: write one with ns-nifi-compress run {self.load_config}")
        rows: list[Row] = []
        shown: list[ReportView] = []
        files: dict[str, str] = {}
        for scene_file in configs:
            opened = load_run(scene_file.with_name("config.yml"))
            chosen = {view.name for view in spaced_views(opened.eval_views.cameras, self.views)}
            files[opened.rate] = describe(info(scene_file.read_bytes()))
            current = [row for row in known if row.more.get("made_of") == evaluated_from(opened)]
            rows += current or evaluate(opened)
            for view in (opened.eval_views[i] for i, name in enumerate(opened.eval_views.names) if name in chosen):
                assert view.image is not None
                shown.append(ReportView.of(view.name, opened.rate, view.image, pictures(opened, view)))
        settings = {"config.yml": self.load_config.read_text()}
        if (description := nifi / "restorer" / "restorer.json").is_file():
            settings["restorer.json"] = json.dumps(json.loads(description.read_text()), indent=1)
        page = Page(first.scene, rows, shown, files, _commands(first, configs), results.current_environment(), settings)
        target = self.output or nifi / "report.html"
        write_text(target, render_report(page))
        print(f"written to {target}")

    def _known_rows(self) -> "list[Row]":
        from nifi_ns import results

        path = self.results or Path("eval.json")
        return results.load(path) if self.results is not None or path.is_file() else []


def _commands(opened: "Run", scene_files: list[Path]) -> list[str]:
    """Return the commands that lead from photos to this report. Options other than defaults are in config.yml."""
    config = opened.config
    data = getattr(config.pipeline.datamanager, "data", None) or "DATA"
    made = [
        f"ns-train {config.method_name} --data {data} --experiment-name {opened.scene} --timestamp {config.timestamp}"
    ]
    base = opened.folder / "config.yml"
    made += [f"ns-nifi-compress run {base} --target-size {file.parent.name}" for file in scene_files]
    if (opened.folder / "nifi" / "restorer").is_dir():
        made.append(
            "ns-nifi-train --load-config " + " ".join(str(file.with_name("config.yml")) for file in scene_files)
        )
    return [*made, shlex.join(["ns-nifi-report", *sys.argv[1:]])]


def entrypoint() -> None:
    """Run `ns-nifi-report`."""
    run(Report)
