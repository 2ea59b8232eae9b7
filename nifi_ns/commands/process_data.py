"""`ns-nifi-process-data`: nerfstudio's `ns-process-data`, which also works without ffmpeg or open3d's libraries."""


def entrypoint() -> None:
    """Run `ns-process-data` with the arguments of the command line."""
    from nifi_ns.plugin.repairs import ffmpeg, late_open3d

    late_open3d.install()
    ffmpeg.install()
    from nerfstudio.scripts import process_data

    process_data.entrypoint()
