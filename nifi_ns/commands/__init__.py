"""The `ns-nifi-*` commands: one file each, a tyro dataclass whose docstrings are its help, and a short `main`."""
