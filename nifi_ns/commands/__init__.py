"""The `ns-nifi-*` commands. Each file has a tyro dataclass, whose docstrings are the help, with a short `main`."""

from nifi_ns.commands._cli import run

__all__ = ["run"]
