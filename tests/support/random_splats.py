"""Gaussians of every size and direction, for round trips and for the files under tests/data/formats."""

import torch

from nifi_ns.splats import Splats


def random_splats(count: int = 300, sh_degree: int = 3, seed: int = 0) -> Splats:
    """`count` gaussians in a box that is off centre, within what every format can hold."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Splats(
        normal(count, 3) * torch.tensor([3.0, 1.0, 0.3]) + torch.tensor([1.0, -2.0, 0.5]),
        normal(count, 3).clamp(-3, 3) - 4,
        normal(count, 4) * (normal(count, 1).abs() + 0.1),
        normal(count) * 2,
        normal(count, (sh_degree + 1) ** 2, 3).clamp(-3, 3) * 0.25,
    )
