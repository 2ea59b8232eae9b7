"""Generate the demo's capture: photos of a garden table with poses and seed points, in nerfstudio's format."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from nifi_ns.capture import CaptureSettings, make_capture
from nifi_ns.commands import run


@dataclass
class MakeCapture:
    """Write a generated capture (`transforms.json`, `images/`, `sparse_pc.ply`) into a folder."""

    output: tyro.conf.Positional[Path]
    """The output folder, created if missing."""
    settings: tyro.conf.OmitArgPrefixes[CaptureSettings] = field(default_factory=CaptureSettings)
    workers: int = 2
    """Number of photos rendered in parallel."""

    def main(self) -> None:
        """Generate the capture and print its folder."""
        print(make_capture(self.output, self.settings, workers=self.workers))


if __name__ == "__main__":
    run(MakeCapture)
