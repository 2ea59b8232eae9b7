"""Splatfacto compiles `get_viewmat` with `torch.compile`. On a CPU without a C++ compiler, training stops.

The function inverts one 3x4 matrix: compiling it takes seconds and gains nothing. Upstream: nerfstudio issue 3242.
"""

from nerfstudio.models import splatfacto

upstream = splatfacto.get_viewmat


def install() -> None:
    """Replace the compiled function by the plain one."""
    splatfacto.get_viewmat = getattr(upstream, "_torchdynamo_orig_callable", upstream)
