"""Resuming splatfacto fails: its `load_state_dict` makes new Parameters, but the optimisers keep the old ones.

Training continues with gaussians that are not optimised, or densification fails because sizes differ. Upstream:
nerfstudio issue 3554.
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
    """Load checkpoints into the Parameters of the optimisers."""
    SplatfactoModel.load_state_dict = _load_in_place
