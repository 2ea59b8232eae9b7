"""What keeps nerfstudio 1.1.5 from working on current libraries, each in a file that names the upstream issue.

`install` is called when nerfstudio loads the plugin, so that every `ns-*` command works, on stock methods too. A repair
that upstream has made can be deleted with its file, its line here and its test.
"""


def install() -> None:
    """Install the repairs that concern all of nerfstudio. Cheap, and harmless when called again."""
    from nifi_ns.plugin.repairs import (
        checkpoints,
        ffmpeg,
        lost_steps,
        one_line_errors,
        seed_points,
        viewer_host,
        viewmat,
    )

    checkpoints.install()
    seed_points.install()
    ffmpeg.install()
    viewmat.install()
    lost_steps.install()
    viewer_host.install()
    one_line_errors.install()
