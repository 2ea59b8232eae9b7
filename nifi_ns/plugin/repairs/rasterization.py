"""Splatfacto calls gsplat, which needs CUDA: on a CPU, training and rendering fail at the first view.

Our `rasterization` has gsplat's signature. It passes CUDA tensors to gsplat, and has compiled kernels for a CPU.
Upstream: nerfstudio issue 2993.
"""

from nerfstudio.models import splatfacto

from nifi_ns.rasterize import rasterization

upstream = splatfacto.rasterization


def install() -> None:
    """Make splatfacto render on the device of its tensors."""
    splatfacto.rasterization = rasterization
