"""Settings of compression."""

from dataclasses import dataclass
from typing import Literal

from nifi_ns.errors import check_fields
from nifi_ns.files import parse_size

PAPER_SIZES = {"paper-0.1": "1.152MB", "paper-0.5": "357KB", "paper-1.0": "223KB"}
"""Mean size of a compressed Mip-NeRF 360 scene in the NiFi paper, by the lambda of its codec."""


def target_bytes(size: str) -> int:
    """Return a size in bytes: one of `PAPER_SIZES`, or a size that `files.parse_size` can read.

    Raises:
        NifiError: if `size` is neither.
    """
    return parse_size(PAPER_SIZES.get(size, size))


@dataclass(frozen=True)
class CompressionSettings:
    """How to compress splats to a scene file of a given size."""

    target_size: str = "60KB"
    """Size of the scene file in total, such as 60KB or 0.36MB, or a size from the paper: paper-0.1, paper-0.5,
    paper-1.0. The file is at most 2 % smaller, unless the whole scene fits into less."""
    sh_degree: int | Literal["auto"] = "auto"
    """Highest SH degree to keep. auto keeps the highest at which all gaussians fit, because at small sizes more
    gaussians matter more than view-dependent colour."""
    bits: Literal["auto", "coarse", "mid", "fine"] = "auto"
    """How finely attributes are quantised. auto balances this against the number of gaussians."""
    steps: int = 1500
    """Fine-tuning steps, including those between prunings. 0 prunes and quantises without fine-tuning."""
    stages: int = 8
    """Number of prunings."""
    prune_until: float = 0.5
    """Fraction of the steps after which pruning ends."""
    quantize_from: float = 0.6
    """Fraction of the steps after which fine-tuning optimises the quantised splats, as the file decodes to them."""
    learning_rate: float = 1.0
    """Factor for all learning rates."""
    ssim_weight: float = 0.2
    """Weight of 1 - SSIM in the loss; L1 has the rest."""
    lod_levels: int = 3
    """Levels of detail in the file. A file cut after any level is a coarser scene. Three levels instead of one cost
    about 0.15 dB at the same size."""
    lod_ratio: float = 4.0
    """Ratio between the numbers of gaussians of successive levels of detail."""
    lod_steps: float = 0.5
    """Fraction of the steps on quantised splats that optimise coarser levels of detail. The last steps never do."""
    importance_views: int = 96
    """Number of views in which the importance of gaussians is measured: the training views and, if there are fewer,
    views between them. Gaussians that are visible in none of them are pruned."""
    seed: int = 0
    """Seed for the order of the views and for measuring importance."""

    def __post_init__(self) -> None:
        target_bytes(self.target_size)
        checks = {
            "sh_degree": (self.sh_degree in ("auto", 0, 1, 2, 3), "auto, 0, 1, 2 or 3"),
            "steps": (self.steps >= 0, "0 or more"),
            "stages": (self.stages >= 1, "1 or more"),
            "prune_until": (0 <= self.prune_until < 1, "at least 0 and less than 1"),
            "quantize_from": (self.prune_until <= self.quantize_from <= 1, "between prune_until and 1"),
            "lod_levels": (1 <= self.lod_levels <= 16, "1 to 16"),
            "lod_ratio": (self.lod_ratio >= 1.5, "1.5 or more"),
            "lod_steps": (0 <= self.lod_steps <= 0.5, "0 to 0.5"),
            "importance_views": (self.importance_views >= 1, "1 or more"),
        }
        check_fields(self, "compression", checks)
