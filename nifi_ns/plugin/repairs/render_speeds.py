"""`ns-render` reports frames per second, but not how much of the time is spent on restoring.

Not reported upstream. `ns-render` imports its column after it has loaded plugins, so a pipeline installs this repair.
"""

import sys

from nerfstudio.utils.rich_utils import ItersPerSecColumn
from rich.progress import Task
from rich.text import Text

from nifi_ns.plugin.speed import STOPWATCH


class SpeedColumn(ItersPerSecColumn):
    """Nerfstudio's column of frames per second, followed by the speeds of rendering and restoring."""

    def render(self, task: Task) -> Text:
        """Return a text such as `0.71 fps (rendering 14.20 fps, restoring 0.75 fps)`."""
        text = super().render(task)
        return text.append(f" ({STOPWATCH})") if str(STOPWATCH) else text


def install() -> None:
    """Show speeds in the progress line of a running `ns-render`."""
    render = sys.modules.get("nerfstudio.scripts.render")
    if render is not None:
        vars(render)["ItersPerSecColumn"] = SpeedColumn
        STOPWATCH.running = True
