"""Render gaussians with gsplat's kernels on CUDA and with our own on a CPU, through one interface.

`rasterization` replaces `gsplat.rasterization`. `render` draws `Splats` from a `View`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from nifi_ns.splats import Splats
from nifi_ns.views import View

__all__ = ["Render", "rasterization", "render", "single_torch_thread"]

RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]


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
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = False,
    tile_size: int = 16,
    backgrounds: Tensor | None = None,  # [C, D]
    render_mode: RenderMode = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: Literal["classic", "antialiased"] = "classic",
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render N gaussians from C cameras on the device of `means`, like `gsplat.rasterization`.

    Arguments and results have the same meaning as in gsplat. Differentiable in all tensors except `Ks`. The CPU kernels
    compute in float32 with 16-pixel tiles. They do not support `packed`, `sparse_grad`, an `sh_degree` above 3 or
    `absgrad` with more than 4 channels.

    Returns:
        render: [C, H, W, D]: the colour channels and depth, as `render_mode` selects.
        alpha: [C, H, W, 1].
        info: the values that gsplat's strategies read. `info["means2d"]` [C, N, 2] is part of the autograd graph: call
            `.retain_grad()` on it. With `absgrad`, the backward pass sets its `.absgrad`. `radii` is [C, N] or
            [C, N, 2], depending on the installed gsplat.

    Raises:
        AssertionError: if a shape is wrong.
        ValueError: if an option is supported only on CUDA.
    """
    n, cameras = means.shape[0], viewmats.shape[0]
    assert means.shape == (n, 3), f"means: expected [N, 3], got {list(means.shape)}"
    assert quats.shape == (n, 4), f"quats: expected [{n}, 4], got {list(quats.shape)}"
    assert scales.shape == (n, 3), f"scales: expected [{n}, 3], got {list(scales.shape)}"
    assert opacities.shape == (n,), f"opacities: expected [{n}], got {list(opacities.shape)}"
    assert viewmats.shape == (cameras, 4, 4), f"viewmats: expected [C, 4, 4], got {list(viewmats.shape)}"
    assert Ks.shape == (cameras, 3, 3), f"Ks: expected [{cameras}, 3, 3], got {list(Ks.shape)}"
    per_camera = colors.ndim == (3 if sh_degree is None else 4)
    leading = (cameras, n) if per_camera else (n,)
    if sh_degree is None:
        expected, valid = f"{[*leading, 'D']}", colors.ndim == len(leading) + 1 and colors.shape[-1] > 0
    else:
        expected = f"{[*leading, 'K', 3]} with K >= {(sh_degree + 1) ** 2}"
        valid = colors.ndim == len(leading) + 2 and colors.shape[-1] == 3 and colors.shape[-2] >= (sh_degree + 1) ** 2
    assert valid and colors.shape[: len(leading)] == leading, f"colors: expected {expected}, got {list(colors.shape)}"
    assert render_mode in ("RGB", "D", "ED", "RGB+D", "RGB+ED"), f"unknown render_mode {render_mode!r}"
    assert rasterize_mode in ("classic", "antialiased"), f"unknown rasterize_mode {rasterize_mode!r}"

    if means.device.type != "cpu":
        from gsplat import rasterization as on_gpu

        return on_gpu(
            *(means, quats, scales, opacities, colors, viewmats, Ks, width, height),
            near_plane=near_plane,
            far_plane=far_plane,
            radius_clip=radius_clip,
            eps2d=eps2d,
            sh_degree=sh_degree,
            packed=packed,
            tile_size=tile_size,
            backgrounds=backgrounds,
            render_mode=render_mode,
            sparse_grad=sparse_grad,
            absgrad=absgrad,
            rasterize_mode=rasterize_mode,
        )
    if packed or sparse_grad:
        raise ValueError("packed and sparse_grad need CUDA tensors: set both to False on a CPU")
    if sh_degree is not None and sh_degree > 3:
        raise ValueError(f"sh_degree {sh_degree} needs CUDA tensors: use at most 3 on a CPU")

    from nifi_ns.rasterize._blend import blend
    from nifi_ns.rasterize._project import Settings, project
    from nifi_ns.rasterize._shade import shade

    settings = Settings(near_plane, far_plane, radius_clip, eps2d, rasterize_mode == "antialiased")
    projection = project(means, quats, scales, opacities, viewmats, Ks, width, height, settings)
    channels = []
    if render_mode.startswith("RGB"):
        if sh_degree is not None:
            colors = shade(sh_degree, means, viewmats, colors, projection.radii)
        channels.append(colors.expand(cameras, -1, -1))
    if render_mode.endswith("D"):
        channels.append(projection.depths[..., None])
    colors = torch.cat(channels, dim=-1) if len(channels) > 1 else channels[0]
    if absgrad and colors.shape[-1] > 4:
        raise ValueError(f"absgrad with {colors.shape[-1]} channels needs CUDA tensors: use at most 4 on a CPU")
    image, transmittance = blend(projection, colors, width, height, absgrad)
    alpha = 1 - transmittance[..., None]
    color, depth = (image[..., :-1], image[..., -1:]) if render_mode.endswith("D") else (image, image[..., :0])
    if backgrounds is not None and render_mode.startswith("RGB"):
        color = color + (1 - alpha) * backgrounds[:, None, None]
    if render_mode.endswith("ED"):
        depth = depth / alpha.clamp_min(1e-10)
    info = {
        **{"camera_ids": None, "gaussian_ids": None, "n_cameras": cameras, "width": width, "height": height},
        **projection._asdict(),
        "radii": projection.radii if _two_radii() else projection.radii.amax(-1),
    }
    return torch.cat([color, depth], dim=-1), alpha, info


@cache
def _two_radii() -> bool:
    """Return whether the installed gsplat's strategies expect `radii` [C, N, 2] (gsplat >= 1.5) instead of [C, N]."""
    from importlib.metadata import version

    major, minor = version("gsplat").split(".")[:2]
    return (int(major), int(minor)) >= (1, 5)


@contextmanager
def single_torch_thread(device: torch.device) -> Iterator[None]:
    """Limit torch to one thread within the block if `device` is a CPU.

    The kernels have their own threads, and torch's would spin idly beside them.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Render:
    """The rendered image of a view."""

    rgb: Tensor
    """[H, W, 3], not clamped."""
    alpha: Tensor
    """[H, W, 1] in [0, 1]."""
    depth: Tensor | None
    """[H, W, 1] expected depth along the optical axis, 0 where nothing is drawn; None if not requested."""
    info: dict[str, Any]
    """`rasterization`'s."""


def render(
    splats: Splats,
    view: View,
    *,
    background: Tensor | None = None,
    depth: bool = False,
    antialiased: bool = False,
    sh_degree: int | None = None,
) -> Render:
    """Render `splats` from `view`, differentiably in the tensors of both.

    Args:
        splats: gaussians before their activations, on the device to render on.
        view: the camera; its photo is ignored.
        background: [3] background colour; black if None.
        depth: also render the expected depth.
        antialiased: compensate the opacity of gaussians smaller than a pixel (Mip-Splatting, Yu et al. 2024).
        sh_degree: use SH up to this degree only; all if None.
    """
    viewmats, Ks = view.viewmat[None].to(splats.means), view.K[None].to(splats.means)
    image, alpha, info = rasterization(
        splats.means,
        splats.quats,
        splats.scales.exp(),
        splats.opacities.sigmoid(),
        splats.sh,
        viewmats,
        Ks,
        view.width,
        view.height,
        sh_degree=splats.sh_degree if sh_degree is None else min(sh_degree, splats.sh_degree),
        backgrounds=None if background is None else background[None].to(splats.means),
        render_mode="RGB+ED" if depth else "RGB",
        rasterize_mode="antialiased" if antialiased else "classic",
    )
    return Render(image[0, ..., :3], alpha[0], image[0, ..., 3:] if depth else None, info)
