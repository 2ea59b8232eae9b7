"""`ns-viewer` opens its viewer to the whole network; here it listens on this machine only, unless asked to.

Whoever reaches the viewer can have files written on this machine, and `ns-viewer` takes no notice of the host that a
run's method has chosen: it has a flag of its own, whose default it inherits from `ViewerConfig`. That class itself is
left alone, so that other methods train as they did. Not reported upstream, where listening to all is meant.
"""

from nerfstudio.configs.base_config import ViewerConfig

LOCAL = "127.0.0.1"


def install() -> None:
    """Change the default of `--viewer.websocket-host` in classes derived from `ViewerConfig` from now on."""
    # nerfstudio loads plugins before ns-viewer derives its class
    ViewerConfig.__dataclass_fields__["websocket_host"].default = LOCAL
