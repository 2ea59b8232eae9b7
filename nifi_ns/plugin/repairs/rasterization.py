"""Splatfacto calls gsplat, which draws on CUDA only: on a CPU training and rendering fail at the first view.

Ours has gsplat's signature and hands CUDA tensors on to it; on a CPU it draws with compiled kernels. Upstream:
nerfstudio issue 2993.
"""

from nerfstudio.models import splatfacto

from nifi_ns.rasterize import rasterization

upstream = splatfacto.rasterization


def install() -> None:
    """Let splatfacto draw on the device of its tensors."""
    splatfacto.rasterization = rasterization
