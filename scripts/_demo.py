"""Run all steps from photos to restored views. Each step is a printed command that can be run by hand."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _comparison import save_comparison
from rich.console import Console

from nifi_ns import results
from nifi_ns.commands import run
from nifi_ns.errors import NifiError
from nifi_ns.files import parse_size, write_text
from nifi_ns.subprocesses import LOGGED

METHOD = "nifi-splat-lite"
console = Console(highlight=False)


@dataclass
class Demo:
    """Capture, train, compress to two sizes, train a restorer, render a video and measure.

    Finished steps are not repeated. An interrupted demo continues when it is started again.
    """

    data: Path | None = None
    """A folder with nerfstudio's transforms.json; by default a capture is generated."""
    output: Path | None = None
    """The output folder; by default `demo`, or `demo/<name of the data>`."""
    sizes: tuple[str, str] = ("60KB", "20KB")
    """The two sizes to compress to."""
    quick: bool = False
    """A tenth of the work, to test that everything runs. The metrics mean little."""

    def main(self) -> None:
        """Run the steps and print the table."""
        for size in self.sizes:
            parse_size(size)
        if self.data is not None and not (self.data / "transforms.json").is_file():
            raise NifiError(f"no transforms.json in {self.data}: make one from photos with ns-nifi-process-data")
        started = time.monotonic()
        scene = "garden" if self.data is None else self.data.resolve().name
        output = self.output or Path("demo") / ("" if self.data is None else scene)
        output.mkdir(parents=True, exist_ok=True)
        steps = Steps(output)

        data = self.data
        if data is None:
            data = output / "capture"
            size = ("--views", "24", "--width", "160", "--height", "120") if self.quick else ()
            script = Path(__file__).with_name("make_capture.py")
            steps.run("capture", data / "transforms.json", sys.executable, script, data, *size)

        folder = output / "runs" / scene / METHOD / "demo"
        large, small = (folder / "nifi" / size / "config.yml" for size in self.sizes)
        steps.run("train", large, *self._train(data, output / "runs", scene))
        compress = ("ns-nifi-compress", "run", folder / "config.yml", "--target-size", self.sizes[1])
        steps.run("compress", small, *compress, *(("--steps", "60") if self.quick else ()))
        restorer = folder / "nifi" / "restorer" / "restorer.json"
        length = ("--smoke",) if self.quick else ("--steps", "300")
        steps.run("restorer", restorer, "ns-nifi-train", "--load-config", large, small, *length)
        video = output / "before_after.mp4"
        path = ("--pose-source", "eval", "--order-poses", "True", "--interpolation-steps", "4" if self.quick else "20")
        shown = ("--rendered-output-names", "rgb", "rgb_restored", "rgb_referenced")
        render = ("ns-render", "interpolate", "--load-config", small, "--output-path", video)
        steps.run("video", video, *render, *shown, *path)
        numbers, pictures = output / "results.json", output / "views"
        measure = ("ns-nifi-eval", "--load-config", large, small, "--output-path", numbers, "--images-dir", pictures)
        steps.run("measure", numbers, *measure)

        rows = results.load(numbers)
        photos = folder / "nifi" / "pairs" / scene / f"rate_{self.sizes[1]}" / "test" / "clean"
        save_comparison(output / "comparison.png", rows, pictures, photos)
        results.show(rows, title=f"{scene}: held-out views, mean")
        for what, path in (
            ("numbers", f"{numbers}, {numbers.with_suffix('.csv')}"),
            ("comparison", output / "comparison.png"),
            ("video", f"{video} (compressed | restored | with references)"),
            ("scene files", f"{large.with_name('scene.nifi')}, {small.with_name('scene.nifi')}"),
            ("look around", f"ns-viewer --load-config {small}"),
        ):
            console.print(f"{what:>12}: {path}", soft_wrap=True)
        console.print(f"{'took':>12}: {(time.monotonic() - started) / 60:.1f} minutes")

    def _train(self, data: Path, runs: Path, scene: str) -> list[str | Path]:
        stage = "--pipeline.model.compression"
        named = ("--output-dir", runs, "--experiment-name", scene, "--timestamp", "demo")
        rate = (f"{stage}.target-size", self.sizes[0])
        short = ("--max-num-iterations", "600", f"{stage}.start-step", "500", f"{stage}.steps", "100")
        quick = short if self.quick else ()
        return ["ns-train", METHOD, *named, "--vis", "tensorboard", *rate, *quick, "--data", data]


class Steps:
    """Runs commands in order, logs each, and skips finished ones."""

    def __init__(self, folder: Path) -> None:
        """Keep logs and the record of finished steps in `folder`."""
        self._logs = folder / "logs"
        self._record = folder / "steps.json"
        self._done: dict[str, str] = json.loads(self._record.read_text()) if self._record.is_file() else {}
        self._chain = ""

    def run(self, name: str, result: Path, *words: str | Path) -> None:
        """Run the command `words`, which writes `result`, unless it and all steps before it are done.

        Raises:
            NifiError: if it fails.
        """
        command = [str(word) for word in words]
        shown = shlex.join("python" if word == sys.executable else word for word in command)
        self._chain = hashlib.sha256(f"{self._chain}\n{shown}".encode()).hexdigest()
        if self._done.get(name) == self._chain and result.exists():
            console.print(f"[dim]{name}: done[/]")
            return
        console.print(f"[bold]{name}[/]: {shown}", soft_wrap=True)
        log = self._logs / f"{name}.log"
        started = time.monotonic()
        status = _run(name, command, log)
        if status or not result.exists():
            console.print(
                "".join(f"  {line}\n" for line in log.read_text(errors="replace").splitlines()[-15:]), markup=False
            )
            raise NifiError(f"{name} failed with status {status}; its output is in {log}")
        self._done[name] = self._chain
        write_text(self._record, json.dumps(self._done, indent=1) + "\n")
        console.print(f"  {time.monotonic() - started:.0f} s, log in {log}")


def _run(name: str, command: Sequence[str], log: Path) -> int:
    """Run `command` in this environment with its output in `log`, and return its status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(sys.executable).parent
    environment = {**os.environ, **LOGGED, "PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"}
    with log.open("wb") as file, console.status(name) as shown:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        started = time.monotonic()
        try:
            while process.poll() is None:
                time.sleep(0.5)
                shown.update(f"{name}: {time.monotonic() - started:.0f} s")
        except BaseException:
            process.terminate()
            process.wait()
            raise
    return process.returncode


if __name__ == "__main__":
    run(Demo)
