"""`ns-render` says how many frames a second come out, but not how much of that time goes to restoring them.

Not reported upstream. `ns-render` loads plugins before it imports its column, so that this comes with a pipeline.
"""

import sys

from nerfstudio.utils.rich_utils import ItersPerSecColumn
from rich.progress import Task
from rich.text import Text

from nifi_ns.plugin.speed import STOPWATCH


class SpeedColumn(ItersPerSecColumn):
    """Nerfstudio's column of frames per second, followed by what a frame's time goes to."""

    def render(self, task: Task) -> Text:
        """Such as `0.71 fps (rendering 14.20 fps, restoring 0.75 fps)`."""
        text = super().render(task)
        return text.append(f" ({STOPWATCH})") if str(STOPWATCH) else text


def install() -> None:
    """Show speeds in the progress line of a running `ns-render`."""
    render = sys.modules.get("nerfstudio.scripts.render")
    if render is not None:
        vars(render)["ItersPerSecColumn"] = SpeedColumn
        STOPWATCH.running = True
