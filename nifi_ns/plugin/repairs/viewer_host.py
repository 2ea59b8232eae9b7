"""`ns-viewer` listens on all network interfaces. With this repair it listens on this machine only, by default.

Anyone who can reach the viewer can make it write files on this machine. `ns-viewer` ignores the host in a run's config:
its own flag has a default from `ViewerConfig`. The default of that class itself does not change, so that other methods
train as before. Not reported upstream, where listening on all interfaces is intended.
"""

from nerfstudio.configs.base_config import ViewerConfig

LOCAL = "127.0.0.1"


def install() -> None:
    """Change the default of `--viewer.websocket-host` in classes derived from `ViewerConfig` after this call."""
    # nerfstudio loads plugins before ns-viewer derives its class
    ViewerConfig.__dataclass_fields__["websocket_host"].default = LOCAL
