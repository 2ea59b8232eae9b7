"""gsplat's MCMC strategy (Kheradmand et al. 2024) on a CPU: torch equivalents of the two CUDA kernels it calls."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def cpu_mcmc_ops(device: torch.device) -> Iterator[None]:
    """Let `gsplat.MCMCStrategy.step_post_backward` run on a CPU inside this block; does nothing on CUDA.

    `gsplat.strategy.ops` calls two functions that exist as CUDA kernels only. They are replaced by `compute_relocation`
    and gsplat's own torch code, which run on any device, and put back at the end.
    """
    if device.type == "cuda":
        yield
        return
    from gsplat.cuda._torch_impl import _quat_scale_to_covar_preci
    from gsplat.strategy import ops

    kernels = ops.quat_scale_to_covar_preci, ops.compute_relocation
    ops.quat_scale_to_covar_preci, ops.compute_relocation = _quat_scale_to_covar_preci, compute_relocation
    try:
        yield
    finally:
        ops.quat_scale_to_covar_preci, ops.compute_relocation = kernels


def compute_relocation(
    opacities: Tensor,  # [N] or [N, 1]
    scales: Tensor,  # [N, 3]
    ratios: Tensor,  # [N], integers
    binoms: Tensor,  # [n_max, n_max]
) -> tuple[Tensor, Tensor]:
    """Opacities and scales of gaussians that are each split into `ratios` equal ones (equation 9 of the paper).

    As `gsplat.relocation.compute_relocation`, with its sum over the binomial coefficients C(0, k) ... C(n - 1, k)
    written as C(n, k + 1), and in float64: the sum alternates.
    """
    n = ratios.clamp(1, len(binoms)).long()
    old, k = opacities.flatten().double(), torch.arange(len(binoms), device=binoms.device)
    new = 1 - (1 - old) ** (1 / n)
    # C(n, k + 1) = C(n - 1, k) * n / (k + 1); zero where k >= n, as the table is
    choose = binoms.double()[n - 1] * n[:, None] / (k + 1)
    total = (choose * (-1.0) ** k / (k + 1.0).sqrt() * new[:, None] ** (k + 1)).sum(-1)
    return new.to(opacities).reshape(opacities.shape), (old / total).to(scales)[:, None] * scales
