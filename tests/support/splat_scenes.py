"""Small scenes to compress, and how two of them are compared."""

import torch
from torch import Tensor

from nifi_ns.splats import Splats
from nifi_ns.views import View


def random_splats(count: int = 300, sh_degree: int = 0, seed: int = 0) -> Splats:
    """Gaussians like trained ones: clustered, anisotropic, some far away."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    far = 1 + 30 * (torch.rand(count, 1, generator=generator) > 0.9)
    harmonics = (
        normal(count, (sh_degree + 1) ** 2, 3) * torch.tensor([1.0, *[0.1] * ((sh_degree + 1) ** 2 - 1)])[:, None]
    )
    return Splats(normal(count, 3) * far, normal(count, 3) - 2.5, normal(count, 4), 2 * normal(count), harmonics)


def views_of_middle(count: int = 4, size: int = 40) -> list[View]:
    """Cameras in a row that look at the origin from a distance of six."""
    K = torch.tensor([[size, 0.0, size / 2], [0.0, size, size / 2], [0.0, 0.0, 1.0]])
    views = []
    for i in range(count):
        viewmat = torch.eye(4)
        viewmat[:3, 3] = torch.tensor([i / 2 - count / 4, 0.0, 6.0])
        views.append(View(f"row_{i}", viewmat, K, size, size))
    return views


def rows(splats: Splats) -> Tensor:
    """[N, D] all values, sorted by gaussian, for comparing scenes that are in different orders."""
    table = torch.cat(
        [splats.means, splats.scales, splats.quats, splats.opacities[:, None], splats.sh.flatten(1)], dim=1
    )
    return torch.tensor(sorted(table.tolist()))


def covariances(splats: Splats) -> Tensor:
    """[N, 3, 3]."""
    w, x, y, z = torch.nn.functional.normalize(splats.quats, dim=1).unbind(1)
    rotation = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        dim=1,
    ).reshape(-1, 3, 3)
    return rotation @ torch.diag_embed((2 * splats.scales).exp()) @ rotation.mT
