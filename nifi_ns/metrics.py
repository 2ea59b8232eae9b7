"""Image quality metrics against a photo, used in every table of the project.

| name | definition | weights |
|---|---|---|
| psnr | dB, capped at 100 so that it is a valid JSON number | |
| ssim | 11x11 gaussian window, `pytorch_msssim` as in splatfacto's `ns-eval` | |
| ms_ssim | five scales (Wang et al. 2003), needs 161 pixels a side | |
| haarpsi | Haar wavelet similarity (Reisenhofer et al. 2018) | |
| gmsd | gradient magnitude similarity deviation (Xue et al. 2013), lower is better | |
| swd | sliced Wasserstein distance of patches, lower is better: see `distributions` | |
| spectrum | difference of radial power spectra in dB, lower is better: see `distributions` | |
| lpips | v0.1 on AlexNet, as `ns-eval` (Zhang et al. 2018), lower is better | AlexNet, 233 MB |
| dists | Ding et al. 2020 on VGG16, lower is better | VGG16, 528 MB |
"""

import logging
import os
import threading
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from nifi_ns import distributions

_log = logging.getLogger(__name__)

METRICS = ("psnr", "ssim", "ms_ssim", "haarpsi", "gmsd", "swd", "spectrum", "lpips", "dists")
REFERENCE_METRICS = METRICS[:5]
"""Metrics that compare pixel by pixel and need no weights, so that they are available on every machine."""
LOWER_IS_BETTER = frozenset({"gmsd", "swd", "spectrum", "lpips", "dists"})

# minimum sides in pixels: windows, pyramids and strides must fit the image
_SMALLEST = {"psnr": 1, "ssim": 11, "ms_ssim": 161, "haarpsi": 16, "gmsd": 16, "lpips": 64, "dists": 16}
_SMALLEST |= dict.fromkeys(("swd", "spectrum"), distributions.SMALLEST)

_ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
_VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"
_DISTS = "https://github.com/photosynthesis-team/piq/releases/download/v0.4.1/dists_weights.pt"
WEIGHTS = {"LPIPS": (_ALEXNET,), "DISTS": (_VGG16, _DISTS)}
"""URLs of the weights by metric."""
_PROBE_SECONDS = 5.0


def digits(name: str) -> int:
    """Return the number of decimals of a metric in tables."""
    return 2 if name == "psnr" else 4


@torch.no_grad()
def compute(image: Tensor, photo: Tensor, *, names: Iterable[str] | None = None) -> dict[str, float | None]:
    """Return metrics of `image` against `photo`, both [H, W, 3] in [0, 1] (clamped).

    Args:
        names: some of `METRICS`; default: all.

    Returns:
        Values by name; None if a metric is undefined at this size or its weights are not available.

    Raises:
        ValueError: on different shapes, values that are not finite, or an unknown name.
    """
    if image.shape != photo.shape or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"expected two [H, W, 3] images, got {tuple(image.shape)} and {tuple(photo.shape)}")
    if not (torch.isfinite(image).all() and torch.isfinite(photo).all()):
        raise ValueError("the images have values that are not finite")
    a, b = (x.detach().float().clamp(0, 1).movedim(-1, 0)[None] for x in (image, photo))
    wanted = METRICS if names is None else tuple(names)
    if unknown := set(wanted) - set(METRICS):
        raise ValueError(f"unknown metrics {sorted(unknown)}, expected some of {METRICS}")
    side = min(image.shape[:2])
    return {name: _FUNCTIONS[name](a, b) if side >= _SMALLEST[name] else None for name in wanted}


def mean(values: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Return means over images by name; None if any image lacks the metric, so that all means cover all images."""

    def average(name: str) -> float | None:
        known = [v for row in values if (v := row[name]) is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    return {name: average(name) for name in (values[0] if values else ())}


@cache
def lpips_network() -> nn.Module | None:
    """Return frozen LPIPS v0.1 on AlexNet, for two [B, 3, H, W] in [-1, 1]; None, with a warning, without weights."""
    if not weights_available("LPIPS", *WEIGHTS["LPIPS"]):
        return None
    import lpips

    with _quiet():
        return lpips.LPIPS(net="alex", verbose=False).eval().requires_grad_(False)


@cache
def dists_network() -> nn.Module | None:
    """Return frozen DISTS, for two [B, 3, H, W] in [0, 1]; None, with a warning, without weights."""
    if not weights_available("DISTS", *WEIGHTS["DISTS"]):
        return None
    import piq

    with _quiet():
        return piq.DISTS().eval().requires_grad_(False)


def missing_weights(*urls: str) -> list[str]:
    """Return the `urls` whose files are not in torch's cache."""
    return [url for url in urls if not (_weights_folder() / Path(url).name).is_file()]


def _weights_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


@cache
def weights_available(what: str, *urls: str) -> bool:
    """Download the files of `urls` to torch's cache if missing, and return whether all are there.

    The result is cached per process. Without a network it takes seconds. `HF_HUB_OFFLINE=1` disables downloads.
    """
    folder, missing = _weights_folder(), missing_weights(*urls)
    if not missing:
        return True
    if os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "TRUE", "YES", "ON") or not all(map(_reachable, missing)):
        _log.warning("%s is unavailable: download %s to %s", what, ", ".join(missing), folder)
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for url in missing:
            digest = Path(url).stem.rpartition("-")[2] if "download.pytorch.org" in url else None
            torch.hub.download_url_to_file(url, str(folder / Path(url).name), hash_prefix=digest)
    except (OSError, RuntimeError) as error:
        _log.warning("%s is unavailable: %s", what, error)
        return False
    return True


def _reachable(url: str) -> bool:
    """Return whether a server answers for `url`. Uses a thread, because name lookups ignore timeouts."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
                answered.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS + 1)
    return bool(answered)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the deprecation warnings of torchvision that lpips and piq cause."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _psnr(a: Tensor, b: Tensor) -> float:
    return -10 * torch.log10((a - b).square().mean().clamp_min(1e-10)).item()


def _ssim(a: Tensor, b: Tensor) -> float:
    from pytorch_msssim import ssim

    return ssim(a, b, data_range=1.0).item()


def _piq(name: str) -> Callable[[Tensor, Tensor], float]:
    def call(a: Tensor, b: Tensor) -> float:
        import piq

        return getattr(piq, name)(a, b, data_range=1.0).item()

    return call


def _lpips(a: Tensor, b: Tensor) -> float | None:
    network = lpips_network()
    return None if network is None else network.to(a.device)(a, b, normalize=True).item()


def _dists(a: Tensor, b: Tensor) -> float | None:
    network = dists_network()
    return None if network is None else network.to(a.device)(a, b).item()


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], float | None]] = {
    "psnr": _psnr,
    "ssim": _ssim,
    "ms_ssim": _piq("multi_scale_ssim"),
    "haarpsi": _piq("haarpsi"),
    "gmsd": _piq("gmsd"),
    "swd": lambda a, b: float(distributions.sliced_wasserstein(a, b)),
    "spectrum": lambda a, b: float(distributions.spectrum_distance(a, b)),
    "lpips": _lpips,
    "dists": _dists,
}
