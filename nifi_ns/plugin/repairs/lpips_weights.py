"""Splatfacto downloads LPIPS weights to be constructed at all; on a machine without a network it cannot be.

This project measures LPIPS elsewhere (`nifi_ns.metrics`: only when asked, unavailable where the weights cannot be had),
so its models are built without, which also keeps 10 MB out of every checkpoint. Upstream: nerfstudio issue 2415.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def without_lpips() -> Iterator[None]:
    """Within the block, torchmetrics' LPIPS is an empty module."""
    import torchmetrics.image.lpip  # not at the start of every command: it loads transformers

    lpips = torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity
    torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity = _nothing
    try:
        yield
    finally:
        torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity = lpips


def _nothing(**_: Any) -> nn.Module:
    return nn.Identity()
