"""`ns-nifi-process-data`: nerfstudio's `ns-process-data`, also without ffmpeg and open3d's system libraries."""


def entrypoint() -> None:
    """Run `ns-process-data` with the arguments of the command line."""
    from nifi_ns.plugin.repairs import ffmpeg, late_open3d

    late_open3d.install()
    ffmpeg.install()
    from nerfstudio.scripts import process_data

    process_data.entrypoint()
