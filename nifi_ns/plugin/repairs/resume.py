"""Resuming splatfacto: its `load_state_dict` makes new Parameters after the optimizers took hold of the old ones.

Training goes on with gaussians nobody optimises, or fails once densification finds other sizes. Upstream: nerfstudio
issue 3554.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def same_parameters(params: nn.ParameterDict) -> Iterator[None]:
    """Whatever Parameters the block puts into `params`, afterwards they are the old objects with the new values."""
    old = dict(params.items())
    yield
    for name, parameter in old.items():
        parameter.data = params[name].data
        params[name] = parameter
