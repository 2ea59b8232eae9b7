"""Gaussians to the image plane, and their colours seen from a camera: plain PyTorch, differentiable by autograd."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nifi_ns.rasterize._constants import FRUSTUM_MARGIN, MAX_EXTENT, MIN_ALPHA


class Projection(NamedTuple):
    """N gaussians in the image planes of C cameras."""

    means2d: Tensor
    """[C, N, 2] pixels."""
    depths: Tensor
    """[C, N] along the optical axis."""
    conics: Tensor
    """[C, N, 3] inverse covariances in pixels: xx, xy, yy."""
    opacities: Tensor
    """[C, N]."""
    radii: Tensor
    """[C, N, 2] int32: the half extent in pixels, 0 where invisible."""


def project(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    *,
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    antialiased: bool,
) -> Projection:
    """Project gaussians by EWA splatting (Zwicker et al. 2001) as gsplat does."""
    rotations, translations = viewmats[:, :3, :3], viewmats[:, :3, 3]
    x, y, z = (means @ rotations.mT + translations[:, None]).unbind(-1)  # [C, N] each
    in_front = (z >= near_plane) & (z <= far_plane)
    z = torch.where(in_front, z, 1.0)  # keeps what is not drawn finite, gradients included
    fx, fy, cx, cy = (Ks[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    u, v = x / z, y / z
    margin_x, margin_y = FRUSTUM_MARGIN * 0.5 * width / fx, FRUSTUM_MARGIN * 0.5 * height / fy
    u_near = torch.minimum(torch.maximum(u, -cx / fx - margin_x), (width - cx) / fx + margin_x)
    v_near = torch.minimum(torch.maximum(v, -cy / fy - margin_y), (height - cy) / fy + margin_y)

    # the covariance's square root seen from the camera, and the rows of its image under the projection's Jacobian
    axes = rotations[:, None] @ (_rotation_matrices(quats) * scales[:, None])  # [C, N, 3, 3]
    across = (fx / z)[..., None] * (axes[..., 0, :] - u_near[..., None] * axes[..., 2, :])
    down = (fy / z)[..., None] * (axes[..., 1, :] - v_near[..., None] * axes[..., 2, :])
    xx, xy, yy = (across * across).sum(-1), (across * down).sum(-1), (down * down).sum(-1)
    area = torch.linalg.cross(across, down).square().sum(-1)  # the determinant, without its cancellation
    determinant = area + eps2d * (xx + yy) + eps2d**2
    xx, yy = xx + eps2d, yy + eps2d

    opacities = opacities.expand(len(viewmats), -1)
    if antialiased:
        opacities = opacities * (area / determinant).clamp_min(1e-12).sqrt()
    means2d = torch.stack([fx * u + cx, fy * v + cy], dim=-1)
    conics = torch.stack([yy, -xy, xx], dim=-1) / determinant[..., None]
    with torch.no_grad():
        extent = (2 * (opacities / MIN_ALPHA).clamp_min(1).log()).sqrt().clamp_max(MAX_EXTENT)
        radii = (extent[..., None] * torch.stack([xx, yy], dim=-1).sqrt()).ceil()
        size = torch.tensor([width, height], dtype=radii.dtype)
        on_screen = ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
        drawn = in_front & on_screen & (opacities >= MIN_ALPHA) & (radii.amax(-1) > radius_clip)
        drawn &= torch.isfinite(conics).all(-1) & (determinant > 0)
        radii = torch.where(drawn[..., None], radii, 0.0).clamp_max(2.0**30).int()
    return Projection(means2d, z, conics, opacities, radii)


def _rotation_matrices(quats: Tensor) -> Tensor:
    """[N, 3, 3] from quaternions [N, 4], wxyz, of any length."""
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def shade(
    degree: int,
    directions: Tensor,  # [C, N, 3]
    coefficients: Tensor,  # [N, K, 3] or [C, N, K, 3]
) -> Tensor:
    """Colours [C, N, 3] from spherical harmonics up to `degree` (0 to 3); `directions` need not have unit length."""
    k = (degree + 1) ** 2
    basis = _harmonics(degree, F.normalize(directions, dim=-1))
    return (0.5 + torch.einsum("...k,...kd->...d", basis, coefficients[..., :k, :])).clamp_min(0)


def _harmonics(degree: int, directions: Tensor) -> Tensor:
    """The real spherical harmonics of unit `directions` [..., 3], in gsplat's order: [..., (degree + 1)^2]."""
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, 0.28209479177387814)]
    if degree >= 1:
        basis += [-0.48860251190292 * y, 0.48860251190292 * z, -0.48860251190292 * x]
    if degree >= 2:
        c2, s2 = x * x - y * y, 2 * x * y
        basis += [0.5462742152960395 * s2, -1.092548430592079 * y * z, 0.9461746957575601 * z * z - 0.3153915652525201]
        basis += [-1.092548430592079 * x * z, 0.5462742152960395 * c2]
    if degree >= 3:
        c3, s3, outer = x * c2 - y * s2, x * s2 + y * c2, 0.4570457994644658 - 2.285228997322329 * z * z
        basis += [-0.5900435899266435 * s3, 1.445305721320277 * z * s2, outer * y]
        basis += [z * (1.865881662950577 * z * z - 1.119528997770346), outer * x]
        basis += [1.445305721320277 * z * c2, -0.5900435899266435 * c3]
    return torch.stack(basis, dim=-1)
