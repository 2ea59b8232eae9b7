"""Reduce the number of gaussians without fine-tuning, by merging neighbours so that no holes open."""

import numpy as np
import torch
from torch import Tensor

from nifi_ns.compress._importance import Importance, ImportanceMeasure
from nifi_ns.splats import SH_C0, Splats

_STAGES = 6  # of merging; each searches for neighbours again
_NEIGHBOURS = 4  # candidates to merge a gaussian into
_COLOUR = 0.2  # colour difference (black to white is 1) that weighs as much as a distance of one extent
_SENSITIVITY_POWER = 0.25  # of the sensitivity to opacity in the weights
_MAX_ALPHA = 0.995


def reduce_by_merging(splats: Splats, measure: ImportanceMeasure, count: int) -> Splats:
    """Merge gaussians until `count` are left, in stages, because merging changes their importance."""
    begin = len(splats)
    for stage in range(1, _STAGES + 1):
        left = round(begin * (count / begin) ** (stage / _STAGES))
        if left < len(splats):
            splats = merge(splats, measure(splats), left)
    return splats


@torch.no_grad()
def merge(splats: Splats, importance: Importance, count: int) -> Splats:
    """Keep the `count` most important gaussians and merge each of the others into a similar neighbour, or drop it.

    A merged gaussian has the mean, covariance and colour of the mixture. Weights are the covered area (area times
    opacity), scaled by a power of the importance so that hidden gaussians do not move visible ones. The area that a
    kept gaussian covers grows with its weight.

    Returns:
        The kept gaussians, the most important first.
    """
    from gsplat.utils import normalized_quat_to_rotmat

    order = importance.opacity_sensitivity.argsort(descending=True)
    kept, others = order[:count], order[count:]
    others, into = _matched(splats, kept, others)
    target = torch.arange(len(splats), device=splats.device)
    target[others] = into
    scales = splats.scales.exp()
    cover = splats.opacities.sigmoid() * _area(scales)
    sensitivity = importance.opacity_sensitivity
    factor = (sensitivity / sensitivity.max().clamp_min(1e-30)) ** _SENSITIVITY_POWER
    weights = cover * factor.clamp_min(1e-3)
    sums = torch.zeros_like(weights).index_add(0, target, weights)

    def weighted_mean(values: Tensor) -> Tensor:
        # [N, ...], over the gaussians with the same target
        dims = -1, *[1] * (values.ndim - 1)
        return torch.zeros_like(values).index_add(0, target, weights.view(dims) * values) / sums.view(dims)

    means = weighted_mean(splats.means)
    offsets = splats.means - means[target]
    turns = normalized_quat_to_rotmat(torch.nn.functional.normalize(splats.quats, dim=1)) * scales[:, None]
    covariances = weighted_mean(turns @ turns.mT + offsets[:, :, None] * offsets[:, None, :])
    grown = target.bincount(minlength=len(splats))[kept] > 1
    changed = kept[grown]
    squares, axes = torch.linalg.eigh(covariances[changed].double())
    sizes = squares.clamp_min(1e-20).sqrt().to(scales)
    merged = splats[kept]
    merged.means[grown], merged.sh[grown] = means[changed], weighted_mean(splats.sh)[changed]
    merged.scales[grown], merged.quats[grown] = sizes.log(), _quaternions(axes).to(scales)
    alphas = (cover * sums / weights)[changed] / _area(sizes).clamp_min(1e-30)
    merged.opacities[grown] = alphas.clamp(1e-4, _MAX_ALPHA).logit()
    return merged


def _matched(splats: Splats, kept: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    # the members of `others` with a near and similar kept gaussian, and the index of that gaussian
    from scipy.spatial import KDTree

    near = min(_NEIGHBOURS, len(kept))
    found = KDTree(splats.means[kept].cpu().numpy()).query(splats.means[others].cpu().numpy(), k=near)
    distances, nearest = (np.reshape(values, (len(others), near)) for values in found)
    targets = kept[torch.from_numpy(nearest).to(kept.device)]
    size = splats.scales.amax(dim=1).exp()
    apart = torch.from_numpy(distances).to(size) / (size[others][:, None] + size[targets])
    colours = SH_C0 * splats.sh[:, 0]
    apart += (colours[others][:, None] - colours[targets]).abs().amax(dim=2) / _COLOUR
    least, which = apart.min(dim=1)
    close = least < 2
    return others[close], targets.gather(1, which[:, None])[close, 0]


def _area(scales: Tensor) -> Tensor:
    # [N, 3] -> [N]: product of the two longest axes
    return scales.sort(dim=1).values[:, 1:].prod(dim=1)


def _quaternions(axes: Tensor) -> Tensor:
    # [N, 3, 3] orthogonal matrices, mirrored or not, -> [N, 4]
    from scipy.spatial.transform import Rotation

    proper = axes * torch.linalg.det(axes).sign()[:, None, None]
    return torch.from_numpy(Rotation.from_matrix(proper.cpu().numpy()).as_quat()[:, [3, 0, 1, 2]])
