import os
import subprocess
import sys
import warnings
from dataclasses import dataclass

import pytest

from nifi_ns.commands._cli import run

IMPORTS = """
from dataclasses import dataclass
from nifi_ns.commands._cli import run

@dataclass
class Imports:
    name: str
    def main(self):
        __import__(self.name)

run(Imports)
"""

COMMAND = """
import warnings
from dataclasses import dataclass
from nifi_ns.commands._cli import run

@dataclass
class Warns:
    def main(self):
        warnings.warn("of a library", FutureWarning)

run(Warns)
"""


def test_future_warnings_of_libraries_are_shown_only_on_request() -> None:
    def stderr_of(*options: str) -> str:
        command = [sys.executable, *options, "-c", COMMAND]
        plain = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=plain).stderr

    assert stderr_of() == ""
    assert "of a library" in stderr_of("-Wdefault")


def test_a_command_does_not_change_warning_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Nothing:
        def main(self) -> None: ...

    monkeypatch.setattr(sys, "argv", ["nothing"])
    before = list(warnings.filters)
    run(Nothing)
    assert warnings.filters == before


def test_a_missing_package_is_reported_in_one_line() -> None:
    def stderr_of(name: str) -> str:
        command = [sys.executable, "-c", IMPORTS, "--name", name]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    wanted = "error: absent is not installed: this command needs all dependencies, pip install nifi-ns\n"
    assert stderr_of("absent.package") == wanted
    assert "Traceback" in stderr_of("nifi_ns.absent")
