"""The `ns-nifi-*` commands: one file each, a tyro dataclass whose docstrings are its help, and a short `main`."""

from nifi_ns.commands._cli import run

__all__ = ["run"]
