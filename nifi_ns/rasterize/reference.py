"""Rasterisation in plain PyTorch and autograd: slow and simple. The kernels are tested against it.

Blending is dense: every gaussian in every pixel, without tiles or lists. It takes any floating dtype; float64 reveals
the kernels' rounding. A test compares the projection and the SH with gsplat's own torch implementations.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nifi_ns.rasterize._constants import FRUSTUM_MARGIN, MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE

_TILE = 16


def rasterization(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [(C,) N, D] or [(C,) N, K, 3]
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    render_mode: Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"] = "RGB",
    rasterize_mode: Literal["classic", "antialiased"] = "classic",
    tiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the image [C, H, W, D] and alpha [C, H, W, 1], like `nifi_ns.rasterize.rasterization` without its info.

    The run time is proportional to N x pixels. With `tiled`, a gaussian is blended only into the tiles that its
    bounding box touches: the fastest version in plain PyTorch, a baseline for the kernels' speed.
    """
    per_camera = colors.ndim == (3 if sh_degree is None else 4)
    images, alphas = [], []
    for c, (viewmat, K) in enumerate(zip(viewmats, Ks, strict=True)):
        depths = means @ viewmat[2, :3] + viewmat[2, 3]
        drawn = ((depths >= near_plane) & (depths <= far_plane)).nonzero()[:, 0]
        drawn = drawn[depths[drawn].argsort(stable=True)]
        means2d, depths, conics, compensations = project(
            means[drawn], quats[drawn], scales[drawn], viewmat, K, width, height, eps2d
        )
        weights = opacities[drawn] * compensations if rasterize_mode == "antialiased" else opacities[drawn]
        features = (colors[c] if per_camera else colors)[drawn]
        if sh_degree is not None:
            directions = means[drawn] - torch.linalg.inv(viewmat)[:3, 3]
            basis = sh_basis(sh_degree, directions)
            features = ((basis[..., None] * features[:, : basis.shape[1]]).sum(dim=1) + 0.5).clamp_min(0)
        if render_mode in ("D", "ED"):
            features = features[:, :0]
        if render_mode != "RGB":
            features = torch.cat([features, depths[:, None]], dim=-1)
        blending = _tiled if tiled else _dense
        image, alpha = blending(means2d, conics, features, weights, width, height)
        if render_mode in ("ED", "RGB+ED"):
            image = torch.cat([image[..., :-1], image[..., -1:] / alpha.clamp_min(1e-10)], dim=-1)
        images.append(image)
        alphas.append(alpha)
    return torch.stack(images), torch.stack(alphas)


def project(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    viewmat: Tensor,  # [4, 4]
    K: Tensor,  # [3, 3]
    width: int,
    height: int,
    eps2d: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Project gaussians in front of a camera into its image plane (Zwicker et al. 2002, EWA splatting).

    Returns:
        means2d: [N, 2] in pixels.
        depths: [N] along the optical axis.
        conics: [N, 3] inverse covariances in pixels: xx, xy, yy.
        compensations: [N] factors of the opacities for antialiasing (Yu et al. 2024).
    """
    from gsplat.utils import normalized_quat_to_rotmat

    axes = normalized_quat_to_rotmat(F.normalize(quats, dim=-1)) * scales[:, None]
    axes = viewmat[:3, :3] @ axes
    x, y, z = (means @ viewmat[:3, :3].T + viewmat[:3, 3]).unbind(-1)
    (fx, fy), (cx, cy) = (K[0, 0], K[1, 1]), (K[0, 2], K[1, 2])
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1)
    # points beyond a margin around the image are linearised at its edge
    margin_x, margin_y = FRUSTUM_MARGIN * 0.5 * width / fx, FRUSTUM_MARGIN * 0.5 * height / fy
    u = (x / z).clamp(min=-cx / fx - margin_x, max=(width - cx) / fx + margin_x)
    v = (y / z).clamp(min=-cy / fy - margin_y, max=(height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * u / z, zero, fy / z, -fy * v / z], dim=-1).unflatten(-1, (2, 3))
    projected = jacobian @ axes
    covariances = projected @ projected.mT
    before = torch.linalg.det(covariances)
    a, b, c = covariances[:, 0, 0] + eps2d, covariances[:, 0, 1], covariances[:, 1, 1] + eps2d
    determinants = (a * c - b * b).clamp_min(1e-10)
    conics = torch.stack([c, -b, a], dim=-1) / determinants[:, None]
    return means2d, z, conics, (before / determinants).clamp_min(0).sqrt()


def sh_basis(degree: int, directions: Tensor) -> Tensor:
    """Return the real SH basis up to `degree` (0 to 3) in `directions` [N, 3], as [N, (degree + 1)^2]."""
    x, y, z = F.normalize(directions, dim=-1).unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    basis = [torch.full_like(x, 0.28209479177387814)]
    if degree > 0:
        basis += [0.48860251190291992 * part for part in (-y, z, -x)]
    if degree > 1:
        basis += [1.0925484305920792 * part for part in (x * y, -y * z)]
        basis += [0.31539156525252005 * (3 * zz - 1), -1.0925484305920792 * x * z, 0.54627421529603959 * (xx - yy)]
    if degree > 2:
        basis += [-0.59004358992664352 * y * (3 * xx - yy), 2.8906114426405538 * x * y * z]
        basis += [-0.45704579946446572 * y * (5 * zz - 1), 0.37317633259011540 * z * (5 * zz - 3)]
        basis += [-0.45704579946446572 * x * (5 * zz - 1), 1.4453057213202769 * z * (xx - yy)]
        basis += [-0.59004358992664352 * x * (xx - 3 * yy)]
    return torch.stack(basis, dim=-1)


def _dense(
    means2d: Tensor, conics: Tensor, features: Tensor, opacities: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """Blend all gaussians, nearest first, into all pixels, in bands that the backward pass recomputes."""
    bands = []
    for top in range(0, height, _TILE):
        area = 0, top, width, min(top + _TILE, height)
        bands.append(checkpoint(_blend, means2d, conics, features, opacities, area, use_reentrant=False))
    return torch.cat([image for image, _ in bands]), torch.cat([alpha for _, alpha in bands])


def _tiled(
    means2d: Tensor, conics: Tensor, features: Tensor, opacities: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """Blend into each tile the gaussians whose bounding box touches it."""
    across, down = -(-width // _TILE), -(-height // _TILE)
    with torch.no_grad():
        a, b, c = conics.unbind(-1)
        level = 2 * (opacities / MIN_ALPHA).clamp_min(1).log() / (a * c - b * b)
        extents = torch.stack([level * c, level * a], dim=-1).sqrt()
        limits = torch.tensor([across, down])
        first = ((means2d - extents) / _TILE).floor().long().clamp_min(0).minimum(limits)
        last = ((means2d + extents) / _TILE).floor().long().add(1).clamp_min(0).minimum(limits)
        size = (last - first).clamp_min(0)
        counts = size.prod(-1) * (opacities >= MIN_ALPHA)
        ids = torch.repeat_interleave(torch.arange(len(means2d)), counts)
        within = torch.arange(len(ids)) - (counts.cumsum(0) - counts)[ids]
        x, y = first[ids, 0] + within % size[ids, 0], first[ids, 1] + within // size[ids, 0]
        tiles, order = (y * across + x).sort(stable=True)
        sizes = torch.bincount(tiles, minlength=across * down).tolist()
    channels = features.shape[-1]
    pairs = torch.cat([means2d, conics, opacities[:, None], features], dim=-1)[ids[order]]
    rows = []
    for tile, part in enumerate(pairs.split(sizes)):
        left, top = tile % across * _TILE, tile // across * _TILE
        mean, conic, opacity, feature = part.split([2, 3, 1, channels], dim=-1)
        area = left, top, min(left + _TILE, width), min(top + _TILE, height)
        blended = torch.cat(_blend(mean, conic, feature, opacity[:, 0], area), dim=-1)
        rows.append(blended) if left == 0 else rows.append(torch.cat([rows.pop(), blended], dim=1))
    image = torch.cat(rows)
    return image[..., :channels], image[..., channels:]


def _blend(
    means2d: Tensor, conics: Tensor, features: Tensor, opacities: Tensor, area: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    """Blend gaussians, nearest first, into all pixels of the area (left, top, right, bottom)."""
    left, top, right, bottom = area
    y, x = torch.meshgrid(torch.arange(top, bottom) + 0.5, torch.arange(left, right) + 0.5, indexing="ij")
    dx, dy = x.flatten()[:, None] - means2d[:, 0], y.flatten()[:, None] - means2d[:, 1]  # [pixels, N]
    a, b, c = conics.unbind(-1)
    s = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (opacities * torch.exp(-s)).clamp_max(MAX_ALPHA)
    alpha = torch.where((s >= 0) & (alpha >= MIN_ALPHA), alpha, 0.0)
    after = torch.cumprod(1 - alpha, dim=-1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=-1)
    weights = torch.where(after > MIN_TRANSMITTANCE, alpha * before, 0.0)
    shape = bottom - top, right - left
    return (weights @ features).unflatten(0, shape), weights.sum(-1, keepdim=True).unflatten(0, shape)
