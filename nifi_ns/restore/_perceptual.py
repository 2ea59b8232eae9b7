"""Perceptual losses between restored and clean crops. LPIPS and DISTS need network weights; the others need none."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from nifi_ns import distributions, metrics
from nifi_ns.errors import NifiError

PerceptualMetric = Literal["lpips", "dists", "ms_ssim", "haarpsi", "swd", "texture", "l1"]
Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Maps restored (unclamped) and clean images [B, 3, H, W] in [0, 1] to a scalar that is zero for equal images."""

_DECIBELS = 20  # spectrum distance that counts as much as an swd of 1
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, finest scale first


def perceptual_loss(metric: PerceptualMetric, device: torch.device) -> Perceptual:
    """Return the loss named `metric`.

    Raises:
        NifiError: if its weights are neither in the cache nor downloadable.
    """
    if metric == "lpips":
        return _lpips(device)
    if metric == "dists":
        return _dists(device)
    return _WITHOUT_WEIGHTS[metric]


def _lpips(device: torch.device) -> Perceptual:
    network = _weights("LPIPS", metrics.lpips_network()).to(device)
    return lambda restored, clean: network(restored, clean, normalize=True).mean()


def _dists(device: torch.device) -> Perceptual:
    network = _weights("DISTS", metrics.dists_network()).to(device)
    return lambda restored, clean: network(restored.clamp(0, 1), clean).mean()


def _weights(what: str, network: nn.Module | None) -> nn.Module:
    if network is None:
        others = "or choose ms_ssim, haarpsi, swd, texture or l1 as perceptual_metric"
        raise NifiError(f"the weights of {what} are missing and cannot be downloaded: see the warning above, {others}")
    return network


def _ms_ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """Return 1 - MS-SSIM on as many scales as fit the crop: five need 161 pixels, three need 41."""
    import piq

    side = min(clean.shape[-2:])
    scales = next((n for n in (5, 4, 3, 2) if 10 * 2 ** (n - 1) < side), 1)
    weights = torch.tensor(_MS_SSIM_WEIGHTS[:scales], device=clean.device)
    similarity = piq.multi_scale_ssim(restored.clamp(0, 1), clean, scale_weights=weights / weights.sum())
    return 1 - _scalar(similarity)


def _haarpsi(restored: Tensor, clean: Tensor) -> Tensor:
    import piq

    return 1 - _scalar(piq.haarpsi(restored.clamp(0, 1), clean))


def _swd(restored: Tensor, clean: Tensor) -> Tensor:
    """Return swd along other random directions than the metric uses."""
    return _mean(partial(distributions.sliced_wasserstein, seed=1), restored, clean)


def _texture(restored: Tensor, clean: Tensor) -> Tensor:
    """Return swd plus the spectrum distance, which covers the finest detail that swd hardly responds to."""
    return _swd(restored, clean) + _mean(distributions.spectrum_distance, restored, clean) / _DECIBELS


def _mean(distance: Callable[[Tensor, Tensor], Tensor], restored: Tensor, clean: Tensor) -> Tensor:
    """Return the mean over a batch of a distance of two [1, 3, H, W]."""
    return torch.stack([distance(a, b) for a, b in zip(restored[:, None], clean[:, None], strict=True)]).mean()


def _scalar(value: Tensor | list[Tensor]) -> Tensor:
    assert isinstance(value, Tensor)
    return value


_WITHOUT_WEIGHTS: dict[str, Perceptual] = {
    "ms_ssim": _ms_ssim,
    "haarpsi": _haarpsi,
    "swd": _swd,
    "texture": _texture,
    "l1": torch.nn.functional.l1_loss,
}
