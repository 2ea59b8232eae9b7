"""What a user says about a compression."""

from dataclasses import dataclass
from typing import Literal

from nifi_ns.errors import NifiError
from nifi_ns.files import parse_size

PAPER_SIZES = {"paper-0.1": "1.152MB", "paper-0.5": "357KB", "paper-1.0": "223KB"}
"""What the NiFi paper's codec takes for a scene of Mip-NeRF 360, on average, by its lambda."""


def target_bytes(size: str) -> int:
    """Bytes in a size as `files.parse_size` reads it, or in one of `PAPER_SIZES`.

    Raises:
        NifiError: if it is neither.
    """
    return parse_size(PAPER_SIZES.get(size, size))


@dataclass(frozen=True)
class CompressionSettings:
    """How splats become a scene file of a given size."""

    target_size: str = "60KB"
    """Size of the scene file, every byte counted: 60KB, 0.36MB, ..., or one of the paper's: paper-0.1, paper-0.5,
    paper-1.0. Met from below, within 2 % where the scene has as much in it."""
    sh_degree: int | Literal["auto"] = "auto"
    """Highest degree of the spherical harmonics to keep; auto keeps what there is room for beside all gaussians, as at
    small sizes more gaussians beat view-dependent colour."""
    bits: Literal["auto", "coarse", "mid", "fine"] = "auto"
    """How finely attributes are quantised; auto trades it against the number of gaussians."""
    steps: int = 1500
    """Fine-tuning steps, pruning included; 0 only prunes and quantises."""
    stages: int = 8
    """Number of prunings on the way from all gaussians to as many as the size has room for."""
    prune_until: float = 0.5
    """Part of the steps after which the last pruning is done."""
    quantize_from: float = 0.6
    """Part of the steps after which the pictures optimised are those of what the file will decode to."""
    learning_rate: float = 1.0
    """Multiplies all learning rates."""
    ssim_weight: float = 0.2
    """Weight of 1 - SSIM in the loss, against the L1 distance."""
    levels: int = 3
    """Levels of the scene file: cut behind any of them it is the file of a coarser scene. Three instead of one cost
    about 0.15 dB at the same bytes."""
    level_ratio: float = 4.0
    """How many times larger the file is up to a level than up to the level before."""
    level_steps: float = 0.5
    """Part of the steps with the quantisers in the loop, but for the last ones, that look at the coarser levels."""
    importance_views: int = 96
    """Views that are looked at to tell which gaussians matter: of the photos or, where there are fewer, between them.
    What only other views see is lost."""
    seed: int = 0
    """For the order of the views."""

    def __post_init__(self) -> None:
        target_bytes(self.target_size)
        checks = {
            "sh_degree": (self.sh_degree in ("auto", 0, 1, 2, 3), "auto, 0, 1, 2 or 3"),
            "steps": (self.steps >= 0, "0 or more"),
            "stages": (self.stages >= 1, "1 or more"),
            "prune_until": (0 <= self.prune_until < 1, "at least 0 and less than 1"),
            "quantize_from": (self.prune_until <= self.quantize_from <= 1, "between prune_until and 1"),
            "levels": (1 <= self.levels <= 16, "1 to 16"),
            "level_ratio": (self.level_ratio >= 1.5, "1.5 or more"),
            "level_steps": (0 <= self.level_steps <= 0.5, "0 to 0.5"),
            "importance_views": (self.importance_views >= 1, "1 or more"),
        }
        for name, (right, wanted) in checks.items():
            if not right:
                raise NifiError(f"compression: {name} is {getattr(self, name)}, expected {wanted}")
