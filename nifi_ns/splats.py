"""Splats: the container of a scene, shared by splatfacto's parameters, `.ply` files and scene files."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

SH_C0 = 0.28209479177387814
"""The zeroth spherical harmonic: at degree 0 a gaussian's colour is `0.5 + SH_C0 * sh[0]` from all directions."""

_REMOVE = "remove them, for example with splat-transform --filter-nan"


@dataclass
class Splats:
    """N gaussians before activations, with the parameter order and sign conventions of the original 3DGS."""

    means: Tensor
    """[N, 3] positions."""
    scales: Tensor
    """[N, 3] natural logarithms of the standard deviations along the principal axes."""
    quats: Tensor
    """[N, 4] rotations, wxyz, of any length but zero."""
    opacities: Tensor
    """[N] logits of the opacity."""
    sh: Tensor
    """[N, (degree + 1)^2, 3] spherical harmonics (SH) of the colour; colour = 0.5 + sum of sh * basis."""

    def __post_init__(self) -> None:
        n, k = len(self), self.sh.shape[1] if self.sh.ndim == 3 else 0
        expected = {"means": (n, 3), "scales": (n, 3), "quats": (n, 4), "opacities": (n,), "sh": (n, k, 3)}
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {tuple(getattr(self, name).shape)}")
        if k not in (1, 4, 9, 16):
            raise ValueError(f"sh: expected 1, 4, 9 or 16 coefficients, got {k}")

    def __len__(self) -> int:
        return self.means.shape[0]

    def __getitem__(self, index: Tensor) -> "Splats":
        """Select gaussians by `index`, [M] integers or [N] booleans."""
        return Splats(*(getattr(self, f.name)[index] for f in fields(self)))

    @classmethod
    def cat(cls, parts: "Sequence[Splats]") -> "Splats":
        """Concatenate the gaussians of all `parts`, which must have the same SH degree."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return {1: 0, 4: 1, 9: 2, 16: 3}[self.sh.shape[1]]

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.means.device

    def to(self, device: torch.device | str) -> "Splats":
        """Move to `device`."""
        return Splats(*(getattr(self, f.name).to(device) for f in fields(self)))

    def detach(self) -> "Splats":
        """Return a copy that shares neither memory nor autograd graph with this one."""
        return Splats(*(getattr(self, f.name).detach().clone() for f in fields(self)))

    def with_sh_degree(self, degree: int) -> "Splats":
        """Return the same gaussians with SH truncated to `degree`, or padded with zeros."""
        k = (degree + 1) ** 2
        sh = torch.zeros(len(self), k, 3, dtype=self.sh.dtype, device=self.device)
        kept = min(k, self.sh.shape[1])
        sh[:, :kept] = self.sh[:, :kept]
        return Splats(self.means, self.scales, self.quats, self.opacities, sh)

    def problem(self) -> str | None:
        """Return how many gaussians cannot be drawn or written and why, for a message; None if all can."""
        for field in fields(self):
            values = getattr(self, field.name).detach()
            if wrong := int((~values.isfinite()).reshape(len(self), -1).any(dim=1).sum()):
                return f"{wrong} of {len(self)} gaussians have {field.name} that are not finite: {_REMOVE}"
        if wrong := int((self.quats.detach() == 0).all(dim=1).sum()):
            return f"{wrong} of {len(self)} gaussians have a rotation of length zero: {_REMOVE}"
        return None

    # -- splatfacto ----------------------------------------------------------------------------------------------

    @classmethod
    def from_gauss_params(cls, params: "dict[str, Tensor] | torch.nn.ParameterDict") -> "Splats":
        """Convert splatfacto's `gauss_params`, differentiably. For SH degree 0 they hold logits of colours."""
        dc, rest = params["features_dc"], params["features_rest"]
        if rest.shape[1] == 0:
            dc = (torch.sigmoid(dc) - 0.5) / SH_C0
        sh = torch.cat([dc[:, None], rest], dim=1)
        return cls(params["means"], params["scales"], params["quats"], params["opacities"][:, 0], sh)

    def to_gauss_params(self, sh_degree: int) -> dict[str, Tensor]:
        """Convert to splatfacto's `gauss_params` for a model of `sh_degree`; the inverse of `from_gauss_params`."""
        sh = self.with_sh_degree(sh_degree).sh
        dc = sh[:, 0]
        if sh_degree == 0:
            dc = torch.logit((0.5 + SH_C0 * dc).clamp(1e-4, 1 - 1e-4))
        opacities = self.opacities[:, None]
        return {
            "means": self.means,
            "scales": self.scales,
            "quats": self.quats,
            "features_dc": dc,
            "features_rest": sh[:, 1:],
            "opacities": opacities,
        }

    @property
    def ply_size(self) -> int:
        """Bytes of a `.ply` of these gaussians without the header; compression ratios refer to it."""
        return 4 * len(self) * (3 + 3 + 4 + 1 + 3 * self.sh.shape[1])
