"""Gaussians left out at random in training, so that each learns to stand for itself where few photos look.

Park et al. 2025, "DropGaussian: Structural Regularization for Sparse-view Gaussian Splatting", section 3.2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_OPAQUE = 0.9999
"""What raised opacities stay below; of more no logit could be had."""


def drop(opacities: Tensor, rate: float) -> Tensor:
    """Logits [N, 1] of opacities, of which a part `rate` in [0, 1) is 0 and the others are raised by 1 / (1 - rate).

    Differentiable; what is dropped has no gradient.
    """
    kept = F.dropout(torch.sigmoid(opacities), rate)
    return torch.logit(kept.clamp(max=_OPAQUE), eps=1e-6)
