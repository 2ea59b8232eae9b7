"""Scenes to draw, ordinary and adversarial, and the comparison of two drawings of one."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

NAMES = ("means", "quats", "scales", "opacities", "colors", "viewmats")


@dataclass(frozen=True)
class Scene:
    """Arguments of `rasterization`: activated gaussians, cameras, and options."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    viewmats: Tensor
    Ks: Tensor
    width: int = 53
    height: int = 38
    options: dict[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> "Scene":
        return replace(self, **changes)

    def arguments(self, dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, Any]:
        """For `rasterization`, with some of them changed."""
        given = {name: getattr(self, name) for name in (*NAMES, "Ks", "width", "height")} | self.options | changes
        return {name: value.to(dtype) if torch.is_tensor(value) else value for name, value in given.items()}

    def __len__(self) -> int:
        return len(self.means)


def cameras(count: int, width: int = 53, height: int = 38) -> tuple[Tensor, Tensor]:
    """Cameras at about the origin that look along z, each turned and moved a little differently."""
    generator = torch.Generator().manual_seed(7)
    viewmats = torch.eye(4).repeat(count, 1, 1)
    axes = 0.1 * torch.randn(count, 3, generator=generator)
    viewmats[:, :3, :3] = torch.linalg.matrix_exp(torch.linalg.cross(torch.eye(3).expand(count, 3, 3), axes[:, None]))
    viewmats[:, :3, 3] = 0.2 * torch.randn(count, 3, generator=generator)
    K = torch.tensor([[50.0, 0, width / 2 - 3], [0, 46.0, height / 2 + 2], [0, 0, 1]])
    return viewmats, K.repeat(count, 1, 1)


def random_scene(n: int = 200, *, channels: int | None = None, views: int = 1, seed: int = 0, **options: Any) -> Scene:
    """`n` gaussians in front of the cameras, some off screen; colours are harmonics unless `channels` says how many."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    means = normal(n, 3) * torch.tensor([1.2, 0.9, 1.0]) + torch.tensor([0.0, 0.0, 4.0])
    scales, opacities = (normal(n, 3) * 0.6 - 2.3).exp(), torch.sigmoid(1.5 * normal(n))
    colors = normal(n, 16, 3) * 0.4 if channels is None else normal(n, channels)
    if channels is None:
        options.setdefault("sh_degree", 3)
    return Scene(means, 2 * normal(n, 4), scales, opacities, colors, *cameras(views), options=options)


def draw(rasterization: Callable[..., Any], scene: Scene, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Draw `scene` and the gradients of a random linear functional of image and alpha."""
    tensors = {name: getattr(scene, name).to(dtype, copy=True).requires_grad_() for name in NAMES}
    image, alpha, *_ = rasterization(**scene.arguments(dtype, **tensors))
    generator = torch.Generator().manual_seed(3)
    loss = sum((out * torch.randn(out.shape, generator=generator).to(dtype)).sum() for out in (image, alpha))
    gradients = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)  # type: ignore[arg-type]
    drawn = {"image": image.detach(), "alpha": alpha.detach()}
    return drawn | {
        f"d {name}": torch.zeros_like(tensors[name]) if gradient is None else gradient
        for name, gradient in zip(NAMES, gradients, strict=True)
    }


def relative_errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """The norm of each difference over the norm of what was expected (over 1e-6 if that is nothing)."""
    assert all(torch.isfinite(tensor).all() for tensor in found.values()), "not finite"
    return {
        name: float((found[name].double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-6))
        for name, wanted in expected.items()
    }
