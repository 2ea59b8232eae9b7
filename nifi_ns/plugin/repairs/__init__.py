"""What keeps nerfstudio 1.1.5 from working on current libraries, each in a file that names the upstream issue.

Every change this package makes to nerfstudio's own modules is here, one a file, each with an `install` that may be
called again without harm. (`lpips_weights`, a context manager, concerns our own models alone.) For each there is a test
that fails without it, and fails too once upstream no longer needs it: then delete the file, its line here and its test.
"""


def install() -> None:
    """Install what every `ns-*` command needs, on stock methods too. Called when nerfstudio loads the plugin."""
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
    """Install what a command needs that runs one of our methods. Called when such a pipeline begins to be built."""
    from nifi_ns.plugin.repairs import one_line_errors, render_speeds, spiral

    for repair in (one_line_errors, render_speeds, spiral):
        repair.install()
