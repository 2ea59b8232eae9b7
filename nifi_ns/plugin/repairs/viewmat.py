"""Splatfacto's `get_viewmat` is `torch.compile`d, for which a CPU needs a C++ compiler; without one, training stops.

The function inverts one 3x4 matrix: compiling it costs seconds and gains nothing. Upstream: nerfstudio issue 3242.
"""

from nerfstudio.models import splatfacto

upstream = splatfacto.get_viewmat


def install() -> None:
    """Put the plain function back in place of the compiled one."""
    splatfacto.get_viewmat = getattr(upstream, "_torchdynamo_orig_callable", upstream)
