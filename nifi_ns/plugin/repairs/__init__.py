"""Repairs that make nerfstudio 1.1.5 work with current libraries, one per file, with the upstream issue.

All changes of this package to nerfstudio's own modules are here. Each has an `install`, which may be called repeatedly.
(`lpips_weights` and `intrinsics` affect only our own models.) Each has a test that fails without the repair, and also
once upstream no longer needs it: then delete the file, its line here and its test.
"""


def install() -> None:
    """Install the repairs for every `ns-*` command and method. Called when nerfstudio loads the plugin."""
    from nifi_ns.plugin.repairs import (
        checkpoints,
        ffmpeg,
        lost_steps,
        rasterization,
        resume,
        seed_points,
        viewer_host,
        viewmat,
    )

    for repair in (checkpoints, ffmpeg, lost_steps, rasterization, resume, seed_points, viewer_host, viewmat):
        repair.install()


def install_for_pipeline() -> None:
    """Install the repairs for commands that run one of our methods. Called before such a pipeline is built."""
    from nifi_ns.plugin.repairs import one_line_errors, render_speeds, spiral

    for repair in (one_line_errors, render_speeds, spiral):
        repair.install()
