"""Compress splats that have finished training, with a fine-tuning loop."""

import random
from collections.abc import Sequence

import torch
from rich.progress import Progress
from torch import Tensor

from nifi_ns.compress._budget import chosen_sh_degree
from nifi_ns.compress._cameras import cameras_around, with_renders
from nifi_ns.compress._compressor import Compressed, Compressor
from nifi_ns.compress._importance import Importance, importance_views, measure_importance
from nifi_ns.compress._merging import reduce_by_merging
from nifi_ns.compress._settings import CompressionSettings
from nifi_ns.errors import NifiError
from nifi_ns.rasterize import render, single_torch_thread
from nifi_ns.rasterize.ssim import SSIM
from nifi_ns.splats import Splats
from nifi_ns.views import View, spaced_views

_LEARNING_RATES = {"means": 1e-3, "scales": 5e-3, "quats": 1e-3, "opacities": 5e-2, "sh0": 2.5e-3, "shN": 1.25e-4}
"""Learning rates at the first step; that of means is multiplied by the cameras' extent. They are splatfacto's, except
that means move faster, to close the gaps that pruning leaves."""
_DECAY = 0.1
"""Learning rates at the last step, as a fraction of those at the first."""


def compress(
    splats: Splats,
    views: Sequence[View],
    settings: CompressionSettings,
    *,
    background: Tensor | None = None,
    antialiased: bool = False,
    progress: bool = True,
) -> Compressed:
    """Prune, fine-tune and quantise splats until their scene file has the target size.

    Args:
        splats: the gaussians, not modified. Everything runs on their device.
        views: cameras with photos to fine-tune on. Without photos the targets are renders of `splats`; without views,
            cameras are placed in and around the scene.
        settings: the target size, and how to reach it.
        background: [3] RGB colour behind the scene; black if None.
        antialiased: whether the splats are drawn antialiased, which the scene file records.
        progress: show a progress bar.

    Raises:
        NifiError: if there are no gaussians, or not a single one fits into the target size.
    """
    from gsplat.strategy.ops import remove

    if len(splats) == 0:
        raise NifiError("the scene is empty: there are no gaussians to compress")
    cameras = importance_views(views, settings.importance_views)
    if not views:
        views = cameras_around(splats)
        cameras = spaced_views(views, settings.importance_views)  # cameras between these might be inside objects
    drawn = {"background": background, "antialiased": antialiased}
    if views[0].image is None:
        views = with_renders(splats, views, **drawn)

    def measure(splats: Splats) -> Importance:
        return measure_importance(splats, cameras, **drawn, seed=settings.seed)

    splats = splats.detach().with_sh_degree(chosen_sh_degree(splats, settings))
    compressor, shuffle = Compressor(settings, antialiased=antialiased), random.Random(settings.seed)
    if settings.steps == 0:
        return compressor.finish(reduce_by_merging(splats, measure, compressor.room_for(splats, measure)), measure)
    parameters = _parameters(splats)
    radius = extent(views)
    optimizers: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.Adam([p], eps=1e-15) for name, p in parameters.items()
    }
    queue: list[int] = []
    with single_torch_thread(splats.device), Progress(disable=not progress, transient=True) as bar:
        task = bar.add_task(f"compressing to {settings.target_size}", total=settings.steps)
        for step in range(settings.steps):
            keep = compressor.prune_mask(step, _splats(parameters), measure)
            if keep is not None:
                remove(parameters, optimizers, {}, ~keep)
            queue = queue or shuffle.sample(range(len(views)), len(views))
            view = views[queue.pop()]
            decoded = compressor.as_decoded(step, _splats(parameters), measure)
            loss = photo_loss(render(decoded, view, **drawn).rgb, view, settings)
            loss.backward()
            rates = learning_rates(step, settings, radius)
            for name, optimizer in optimizers.items():
                optimizer.param_groups[0]["lr"] = rates[name]
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            bar.advance(task)
    return compressor.finish(_splats(parameters), measure)


def learning_rates(step: int, settings: CompressionSettings, extent: float) -> dict[str, float]:
    """Return the learning rates at a step, by gsplat's parameter names; `extent` is that of the cameras."""
    scale = settings.learning_rate * _DECAY ** (step / settings.steps)
    rates = {name: scale * rate for name, rate in _LEARNING_RATES.items()}
    return rates | {"means": rates["means"] * extent}


def photo_loss(image: Tensor, view: View, settings: CompressionSettings) -> Tensor:
    """Return the weighted sum of L1 and 1 - SSIM between a render [H, W, 3] and the photo of `view`."""
    assert view.image is not None, f"the view {view.name} has no photo"
    photo = view.image.to(image)
    similarity = SSIM()(photo.permute(2, 0, 1)[None], image.permute(2, 0, 1)[None])
    weight = settings.ssim_weight
    return (1 - weight) * (image - photo).abs().mean() + weight * (1 - similarity)


def extent(views: Sequence[View]) -> float:
    """Return the largest distance of a camera from the mean camera position: the unit of the learning rate of means."""
    centres = torch.stack([view.centre for view in views])
    return max(float((centres - centres.mean(dim=0)).norm(dim=1).max()), 1e-3)


def _parameters(splats: Splats) -> torch.nn.ParameterDict:
    # named as gsplat's `remove` expects
    values = {"means": splats.means, "scales": splats.scales, "quats": splats.quats, "opacities": splats.opacities}
    values |= {"sh0": splats.sh[:, :1], "shN": splats.sh[:, 1:]}
    return torch.nn.ParameterDict({k: torch.nn.Parameter(v.detach().float().clone()) for k, v in values.items()})


def _splats(parameters: torch.nn.ParameterDict) -> Splats:
    sh = torch.cat([parameters["sh0"], parameters["shN"]], dim=1)
    means, scales, quats, opacities = (parameters[name] for name in ("means", "scales", "quats", "opacities"))
    return Splats(means, scales, quats, opacities, sh)
