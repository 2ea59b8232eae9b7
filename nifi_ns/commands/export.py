"""`ns-nifi-export`: nerfstudio's `ns-export`, which also works without open3d's system libraries."""


def entrypoint() -> None:
    """Run `ns-export` with the arguments of the command line."""
    from nifi_ns.plugin.repairs import late_open3d

    late_open3d.install()
    from nerfstudio.scripts import exporter

    exporter.entrypoint()
