"""`ns-nifi-selftest`: test this installation, from checks of the machine to a table of results."""

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nifi_ns.commands._cli import run
from nifi_ns.errors import NifiError

if TYPE_CHECKING:
    from rich.console import Console

    from nifi_ns.commands._checks import Check
    from nifi_ns.commands._steps import Step

_MADE = ("logs", "diagnostics", "capture", "runs", "pairs", "restorer")
_FILES = ("checks.json", "metrics.json", "metrics.csv", "run_manifest.json", "selftest_manifest.json")
_MANIFEST = _FILES[-1]
_HERE = "nifi_ns.commands.selftest"
_BUILD_MINUTES = 45  # gsplat compiles its CUDA kernels on first use: 25 minutes measured on two cores


@dataclass
class Selftest:
    """Check the machine, then train splats, write pairs, train a restorer and evaluate, each for about a minute.

    Each step is a command in a separate process. It is stopped if it takes too long or hangs, and tried twice.
    OUTPUT_DIR then holds logs/, run_manifest.json (versions, commands, times), selftest_manifest.json (results of the
    steps and what to do after a failure), metrics.json and .csv, and diagnostics/ of steps that hung or failed. Nothing
    is downloaded. The training is very short, so the metrics mean little.
    """

    data: Path | None = None
    """A folder with nerfstudio's transforms.json; by default a small capture is generated."""
    output_dir: Path = Path("selftest")
    """The output folder. An earlier selftest in it is replaced."""
    checks_only: bool = False
    """Only check the machine: Python, packages, GPU, compiler, ffmpeg, weights, memory, disk."""
    time_limit: float = 10.0
    """Maximum minutes per step. Large --data needs more."""
    silence_limit: float = 60.0
    """Maximum seconds that a step may write nothing and use less than 1 % of a core."""

    def main(self) -> None:
        """Run the checks or all steps. Exits with status 1 if anything fails."""
        if self.checks_only:
            return self._check()
        if self.data is not None and not (self.data / "transforms.json").is_file():
            raise NifiError(f"no transforms.json in {self.data}: make one from photos with ns-nifi-process-data")
        if min(self.time_limit, self.silence_limit) <= 0:
            raise NifiError("--time-limit and --silence-limit must be larger than zero")
        self._clear_output()
        from rich.console import Console

        from nifi_ns.commands._steps import Journal
        from nifi_ns.commands._watch import Limits

        console = Console(highlight=False)
        journal = Journal(self.output_dir, Limits(60 * self.time_limit, self.silence_limit), console)
        passed = journal.run(self._steps())
        for check in self._checked():
            if check.level != "OK":
                _show(console, check)
        if passed:
            console.print(
                f"[bold green]PASS[/]: everything works; metrics and logs are in {self.output_dir}", soft_wrap=True
            )
            return
        failure = journal.failure()
        console.print(f"[bold red]FAIL[/]: {failure['step']}: {failure['what_to_do']}", soft_wrap=True)
        seen = ", ".join(str(self.output_dir / file) for file in (failure["log"], *failure.get("diagnostics", ())))
        console.print(f"see {seen}", soft_wrap=True)
        sys.exit(1)

    def _check(self) -> None:
        """Run and print all checks, and write checks.json if the output folder exists."""
        from rich.console import Console

        from nifi_ns.commands._checks import run_checks
        from nifi_ns.files import write_text

        console = Console(highlight=False)
        checks = run_checks(self.output_dir)
        for check in checks:
            _show(console, check)
        if self.output_dir.is_dir():
            document = {"checks": [asdict(check) for check in checks]}
            write_text(self.output_dir / "checks.json", json.dumps(document, indent=1) + "\n")
        if problems := [check for check in checks if check.level == "problem"]:
            raise NifiError(f"{problems[0].name}: {problems[0].todo}")

    def _checked(self) -> "list[Check]":
        from nifi_ns.commands._checks import Check

        file = self.output_dir / "checks.json"
        return [Check(**entry) for entry in json.loads(file.read_text())["checks"]] if file.is_file() else []

    def _clear_output(self) -> None:
        """Create the output folder, or remove an earlier selftest from it."""
        folder = self.output_dir
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / _MANIFEST).is_file()):
            raise NifiError(f"--output-dir {folder} is in use: give a new or an empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        for name in _MADE:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)

    def _steps(self) -> "list[Step]":
        from nifi_ns.commands._steps import Step

        folder = self.output_dir
        scene = folder / "runs" / "selftest" / "nifi-splat-lite" / "run" / "nifi" / "20KB"
        config = str(scene / "config.yml")
        pairs, restorer, metrics = folder / "pairs", folder / "restorer", folder / "metrics.json"
        checks = ("ns-nifi-selftest", "--checks-only", "--output-dir", str(folder))
        steps = [Step("checks", checks, folder / "checks.json", f"{_HERE}:entrypoint", 60 * _BUILD_MINUTES)]
        data = self.data
        if data is None:
            data = folder / "capture"
            steps.append(Step("capture", ("capture", str(data)), data / "transforms.json", f"{_HERE}:capture"))
        stage = "--pipeline.model.compression"
        build = ("--output-dir", str(folder / "runs"), "--experiment-name", "selftest", "--timestamp", "run")
        build += ("--vis", "tensorboard", "--max-num-iterations", "300", f"{stage}.start-step", "240")
        build += (f"{stage}.steps", "60", f"{stage}.target-size", "20KB", "--data", str(data))
        train = ("--pairs", str(pairs), "--output-dir", str(restorer), "--smoke", "--overwrite")
        evaluate = ("--load-config", config, "--restorer", str(restorer), "--output-path", str(metrics))
        made = pairs / "selftest" / "rate_20KB" / "pairs.json"
        return [
            *steps,
            Step("build", ("ns-train", "nifi-splat-lite", *build), scene / "config.yml"),
            Step("pairs", ("ns-nifi-pairs", "run", config, "--output-dir", str(pairs)), made),
            Step("train", ("ns-nifi-train", *train), restorer / "restorer.json"),
            Step("evaluate", ("ns-nifi-eval", *evaluate), metrics),
        ]


def _show(console: "Console", check: "Check") -> None:
    from rich.markup import escape

    style = {"OK": "green", "note": "yellow", "problem": "red"}[check.level]
    console.print(f"[{style}]{check.level:>7}[/]  {check.name}: {escape(check.found)}", soft_wrap=True)
    if check.todo:
        console.print(f"{'':>9}[dim]{escape(check.todo)}[/]", soft_wrap=True)


def capture() -> None:
    """Write the selftest's capture to the folder given as the only argument."""
    from nifi_ns.capture import CaptureSettings, make_capture

    settings = CaptureSettings(views=16, width=160, height=120, samples=2, points=2000)
    print(make_capture(sys.argv[1], settings, workers=2))


def entrypoint() -> None:
    """Run `ns-nifi-selftest`."""
    run(Selftest)


if __name__ == "__main__":
    entrypoint()
