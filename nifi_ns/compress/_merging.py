"""Fewer gaussians without fine-tuning: those that go are merged into neighbours, so that they leave no holes."""

import numpy as np
import torch
from torch import Tensor

from nifi_ns.compress._importance import Importance, Judge
from nifi_ns.splats import SH_C0, Splats

_STAGES = 6  # on the way to a count; in each the neighbours are other ones
_NEIGHBOURS = 4  # that a gaussian may be merged into one of
_COLOUR = 0.2  # difference of colours, of 1 from black to white, that counts as much as touching from afar
_BY_FADING = 0.25  # power of the energy of fading by which what matters weighs more
_MOST_OPAQUE = 0.995


def thin_out(splats: Splats, judge: Judge, count: int) -> Splats:
    """`count` gaussians that look like all of them: `merge` in stages, as what matters changes with every merger."""
    begin = len(splats)
    for stage in range(1, _STAGES + 1):
        left = round(begin * (count / begin) ** (stage / _STAGES))
        if left < len(splats):
            splats = merge(splats, judge(splats), left)
    return splats


@torch.no_grad()
def merge(splats: Splats, importance: Importance, count: int) -> Splats:
    """The `count` most important gaussians, with the others merged into the likest one near them, or dropped.

    Two gaussians are taken together as their mixture: the same mean, covariance and mean colour. Each weighs as much as
    it covers (its area times its opacity), and more if it matters more: what hides behind others must not move them.
    What the kept one covers grows by as much as the weight.

    Returns:
        The gaussians, the most important first.
    """
    from gsplat.utils import normalized_quat_to_rotmat

    order = importance.fading.argsort(descending=True)
    kept, others = order[:count], order[count:]
    others, into = _matched(splats, kept, others)
    target = torch.arange(len(splats), device=splats.device)
    target[others] = into
    scales = splats.scales.exp()
    cover = splats.opacities.sigmoid() * _area(scales)
    matters = (importance.fading / importance.fading.max().clamp_min(1e-30)) ** _BY_FADING
    weights = cover * matters.clamp_min(1e-3)
    sums = torch.zeros_like(weights).index_add(0, target, weights)

    def together(values: Tensor) -> Tensor:
        # weighted means, [N, ...], of those with the same target
        dims = -1, *[1] * (values.ndim - 1)
        return torch.zeros_like(values).index_add(0, target, weights.view(dims) * values) / sums.view(dims)

    means = together(splats.means)
    offsets = splats.means - means[target]
    turns = normalized_quat_to_rotmat(torch.nn.functional.normalize(splats.quats, dim=1)) * scales[:, None]
    spread = together(turns @ turns.mT + offsets[:, :, None] * offsets[:, None, :])
    grown = target.bincount(minlength=len(splats))[kept] > 1
    changed = kept[grown]
    squares, axes = torch.linalg.eigh(spread[changed].double())
    sizes = squares.clamp_min(1e-20).sqrt().to(scales)
    merged = splats[kept]
    merged.means[grown], merged.sh[grown] = means[changed], together(splats.sh)[changed]
    merged.scales[grown], merged.quats[grown] = sizes.log(), _quaternions(axes).to(scales)
    alphas = (cover * sums / weights)[changed] / _area(sizes).clamp_min(1e-30)
    merged.opacities[grown] = alphas.clamp(1e-4, _MOST_OPAQUE).logit()
    return merged


def _matched(splats: Splats, kept: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    # those of `others` that a kept one is near enough and like enough, and which it is
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
    # [N, 3] -> [N], up to a constant: of the two longest axes
    return scales.sort(dim=1).values[:, 1:].prod(dim=1)


def _quaternions(axes: Tensor) -> Tensor:
    # [N, 3, 3] orthogonal matrices, mirrored or not, -> [N, 4]
    from scipy.spatial.transform import Rotation

    proper = axes * torch.linalg.det(axes).sign()[:, None, None]
    return torch.from_numpy(Rotation.from_matrix(proper.cpu().numpy()).as_quat()[:, [3, 0, 1, 2]])
