"""Reduce the number of gaussians without fine-tuning: merge them into neighbours, so that they leave no holes."""

import numpy as np
import torch
from torch import Tensor

from nifi_ns.compress._importance import Importance, ImportanceMeasure
from nifi_ns.splats import SH_C0, Splats

_STAGES = 6  # of merging; the neighbours are found anew in each
_NEIGHBOURS = 4  # candidates to merge a gaussian into
_COLOUR = 0.2  # difference of colours (black to white is 1) that counts as much as a distance of one extent
_BY_SENSITIVITY = 0.25  # power of the sensitivity to opacity in the weights
_MOST_OPAQUE = 0.995


def reduce_by_merging(splats: Splats, measure: ImportanceMeasure, count: int) -> Splats:
    """Merge gaussians until `count` are left, in stages, as importance changes with every merger."""
    begin = len(splats)
    for stage in range(1, _STAGES + 1):
        left = round(begin * (count / begin) ** (stage / _STAGES))
        if left < len(splats):
            splats = merge(splats, measure(splats), left)
    return splats


@torch.no_grad()
def merge(splats: Splats, importance: Importance, count: int) -> Splats:
    """Keep the `count` most important gaussians; merge each other one into the most similar one near it, or drop it.

    Merged gaussians have the mean, covariance and mean colour of their mixture. The weights are what each covers (area
    times opacity), increased by importance: a gaussian hidden behind others must not move them. The area that a kept
    gaussian covers grows with the weight.

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
    factor = (importance.opacity_sensitivity / importance.opacity_sensitivity.max().clamp_min(1e-30)) ** _BY_SENSITIVITY
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
    merged.opacities[grown] = alphas.clamp(1e-4, _MOST_OPAQUE).logit()
    return merged


def _matched(splats: Splats, kept: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    # those of `others` with a kept gaussian that is near and similar enough, and which one that is
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
