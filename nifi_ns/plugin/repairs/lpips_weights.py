"""Splatfacto downloads LPIPS weights when it is constructed, which fails without internet access.

This project measures LPIPS elsewhere (`nifi_ns.metrics`: only on request, and only if the weights are available). So
its models are built without LPIPS, which also saves 10 MB in every checkpoint. Upstream: nerfstudio issue 2415.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def without_lpips() -> Iterator[None]:
    """Replace torchmetrics' LPIPS by an empty module within the block."""
    import torchmetrics.image.lpip  # not at the top of the file, because it loads transformers

    lpips = torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity
    torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity = _empty_module
    try:
        yield
    finally:
        torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity = lpips


def _empty_module(**_: Any) -> nn.Module:
    return nn.Identity()
