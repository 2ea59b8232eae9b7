"""Random dropout of gaussians in training, against overfitting to few photos.

Park et al. 2025, "DropGaussian: Structural Regularization for Sparse-view Gaussian Splatting", section 3.2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_OPAQUE = 0.9999
"""Upper limit of raised opacities: an opacity of 1 has no finite logit."""


def drop(opacities: Tensor, rate: float) -> Tensor:
    """Drop gaussians at random, and raise the other opacities to compensate.

    Args:
        opacities: [N, 1] logits.
        rate: share to drop, in [0, 1).

    Returns:
        [N, 1] logits: of opacity 0 for dropped gaussians, and of opacity / (1 - rate) for the others. Differentiable;
        dropped gaussians get no gradient.
    """
    kept = F.dropout(torch.sigmoid(opacities), rate)
    return torch.logit(kept.clamp(max=_OPAQUE), eps=1e-6)
