"""Resuming splatfacto: its `load_state_dict` makes new Parameters after the optimizers took hold of the old ones.

Training goes on with gaussians nobody optimises, or fails once densification finds other sizes. Upstream: nerfstudio
issue 3554.
"""

from typing import Any

from nerfstudio.models.splatfacto import SplatfactoModel

upstream = SplatfactoModel.load_state_dict


def _load_in_place(self: SplatfactoModel, dict: Any, **kwargs: Any) -> None:
    old = {**self.gauss_params}
    upstream(self, dict, **kwargs)
    for name, parameter in old.items():
        parameter.data = self.gauss_params[name].data
        self.gauss_params[name] = parameter


def install() -> None:
    """Load checkpoints into the Parameters that the optimizers hold."""
    SplatfactoModel.load_state_dict = _load_in_place
