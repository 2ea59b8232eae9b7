"""Reference residuals: repair a view, without training, from the photos that the splats were made of.

The splats know roughly where everything is, the photos know what it looks like. For a new view: lift each pixel to 3D
by the rendered depth, correct that depth until the photos around agree on what is there (plane sweeping, Collins 1996),
look up in those photos what their own renders got wrong, and add the blend of it to the render. Where no photo sees a
pixel, the render stays as it is.

Only pictures, depths and cameras come in, so that anything that renders colour and depth can be repaired.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nifi_ns.restore.warping import angle_squared, epipolar, inside, lift, sample, visibility
from nifi_ns.views import View

Renderer = Callable[[View], tuple[Tensor, Tensor]]
"""Draws a view: colour [H, W, 3], and depth along the optical axis [H, W, 1] that is 0 where nothing is."""

_CHOICE_ROWS = 20
"""Rows of the grid of points by which references are chosen."""
_BORDER = 8.0
"""Pixels over which a reference fades in from its border."""
_TOGETHER = 9
"""Side in pixels of the squares that are taken from a reference together."""
_RENDER_SHARE = 0.1
"""How much the render has to say about the depth, relative to the photos."""
_DECISIVENESS = 0.0015
"""Mean absolute difference of colours that makes one depth clearly better than another."""


@dataclass(frozen=True)
class ReferenceSettings:
    """How photos are chosen, aligned and blended. The defaults serve scenes of any size: nothing here is in metres."""

    count: int = 6
    """Photos that a view is repaired from."""
    sweep: tuple[tuple[float, int], ...] = ((0.08, 11), (0.02, 5))
    """Passes of depth correction: the range searched to either side, relative to the depth, and the window in pixels of
    the half resolution at which photos are compared. Empty: trust the rendered depth."""
    steps: int = 5
    """Depths tried per pass, besides two of the neighbours."""
    depth_tolerance: float = 0.10
    """Relative difference of depths at which a photo is taken to see something else."""
    colour_tolerance: float = 0.10
    """Difference of the two renders at which they are taken to show different things."""
    angle: float = 0.05
    """Angle between two lines of sight, in radians, below which photos count as equally near."""
    doubt: float = 0.05
    """Agreement, in [0, 1], at which half of the residual is added."""
    cache_size: int = 64
    """Renders of references that are kept."""


class ReferenceBank:
    """The photos of a capture, and on demand what a render of the same splats gets wrong in them."""

    def __init__(self, views: Sequence[View], render: Renderer, *, settings: ReferenceSettings | None = None) -> None:
        """Collect the references; they are rendered when they are first needed.

        Args:
            views: the training views, each with its photo.
            render: draws any view of the splats under repair.
            settings: see `ReferenceSettings`.

        Raises:
            ValueError: if a view has no photo.
        """
        # a sequence may load its photos when it is asked for them: only the cameras are kept
        cameras = [(replace(view, image=None), view.image is None) for view in views]
        if missing := [camera.name for camera, without in cameras if without]:
            raise ValueError(f"references need photos; there is none in {', '.join(missing[:3])}")
        self._views = views
        self._cameras = [camera for camera, _ in cameras]
        self.settings = settings or ReferenceSettings()
        self._render = render
        self._layers: OrderedDict[int, Tensor] = OrderedDict()

    @torch.no_grad()
    def restore(
        self,
        view: View,
        rgb: Tensor,  # [H, W, 3]
        depth: Tensor,  # [H, W, 1]
        *,
        exclude: Collection[str] = (),
    ) -> tuple[Tensor, Tensor]:
        """Repair `rgb`, what `render` draws of `view` along with `depth`.

        Args:
            view: the camera; its photo is not looked at.
            rgb: colour in [0, 1].
            depth: along the optical axis, in the units of the cameras; 0 where nothing is.
            exclude: names of references not to use: the view itself, when pairs for training are made.

        Returns:
            The repaired colour [H, W, 3] in [0, 1], and the confidence [H, W, 1] in [0, 1]: the share of the residual
            that was added.
        """
        if rgb.shape != (view.height, view.width, 3) or depth.shape != (view.height, view.width, 1):
            raise ValueError(
                f"expected {(view.height, view.width)} pixels, got {tuple(rgb.shape)} and {tuple(depth.shape)}"
            )
        view = view.to(rgb.device)
        chosen = self.choose(view, depth, exclude=exclude)
        if not chosen:
            return rgb.clamp(0, 1), torch.zeros_like(depth)
        references = [(self._cameras[i].to(rgb.device), self._reference(i, rgb.device)) for i in chosen]
        for reach, window in self.settings.sweep:
            depth = self._sweep(view, rgb, depth, references, reach, window)
        residual, agreement = self._blend(view, rgb, depth, references)
        confidence = agreement / (agreement + self.settings.doubt)
        return (rgb + confidence * residual).clamp(0, 1), confidence

    @torch.no_grad()
    def choose(self, view: View, depth: Tensor, *, exclude: Collection[str] = ()) -> list[int]:
        """Indices of the references that together see most of what `view` sees, from nearby; the best first.

        Greedy: each next one adds most to the sum over points of the square root of how well they are seen, so that a
        second look at a point counts less than a first look at another.
        """
        height = min(_CHOICE_ROWS, view.height)
        width = max(1, round(height * view.width / view.height))
        coarse = F.interpolate(_chw(depth), (height, width), mode="nearest")[0].movedim(0, -1)
        points = lift(view, coarse)[coarse[..., 0] > 0]
        scores = visibility(points, view, [reference.to(points.device) for reference in self._cameras])
        for i, reference in enumerate(self._cameras):
            if reference.name in exclude:
                scores[i] = 0
        total, chosen = torch.zeros_like(scores[0]), []
        for _ in range(min(self.settings.count, len(self._cameras))):
            gains = ((total + scores).sqrt() - total.sqrt()).sum(dim=1)
            best = int(gains.argmax())
            if gains[best] <= 0:
                break
            chosen.append(best)
            total, scores[best] = total + scores[best], 0
        return chosen

    def _reference(self, index: int, device: torch.device) -> Tensor:
        """[1, 7, H, W]: photo, what its render lacks, depth; the most recently used ones are kept."""
        if index not in self._layers:
            view = self._views[index].to(device)
            rgb, depth = self._render(view)
            assert view.image is not None
            rgb = rgb.clamp(0, 1)
            self._layers[index] = _chw(torch.cat([view.image, view.image - rgb, depth], dim=-1))
            if len(self._layers) > self.settings.cache_size:
                self._layers.popitem(last=False)
        self._layers.move_to_end(index)
        return self._layers[index].to(device)

    def _sweep(
        self,
        view: View,
        rgb: Tensor,
        depth: Tensor,
        references: Sequence[tuple[View, Tensor]],
        reach: float,
        window: int,
    ) -> Tensor:
        """`depth` [H, W, 1], moved to where the photos agree with each other (and a little with the render).

        At half the resolution: photos smoothed that much hide less of the depth's error than they cost in time.
        """
        height, width = max(1, view.height // 2), max(1, view.width // 2)
        base = F.interpolate(_chw(depth), (height, width), mode="bilinear", align_corners=False)
        log_depth = base.clamp_min(1e-6).log()
        render = F.interpolate(_chw(rgb), (height, width), mode="area")[0]
        photos = [F.interpolate(layers[:, :3], scale_factor=0.5, mode="area") for _, layers in references]
        lines = [epipolar(view, other, height, width) for other, _ in references]
        base = base[0].movedim(0, -1)
        weights = torch.stack(
            [
                self._same_surface(*line.project(base), other, layers)[..., 0] + 1e-4
                for line, (other, layers) in zip(lines, references, strict=True)
            ]
        )[:, None]
        weights = weights / weights.sum(dim=0)
        # besides a range around the depth: the nearest and the furthest of the neighbours, because at a silhouette the
        # expected depth lies between the two surfaces, on neither
        offsets = [
            log_depth.new_full((1, height, width), step)
            for step in torch.linspace(-reach, reach, self.settings.steps).tolist()
        ]
        offsets.append((F.max_pool2d(log_depth, 5, 1, 2) - log_depth)[0])
        offsets.append((-F.max_pool2d(-log_depth, 5, 1, 2) - log_depth)[0])
        costs = []
        for offset in offsets:
            z = base * offset.movedim(0, -1).exp()
            seen = torch.stack(
                [sample(p, line.project(z)[0], v) for p, line, (v, _) in zip(photos, lines, references, strict=True)]
            )
            mean = (weights * seen).sum(dim=0)
            spread = (weights * (seen - mean).abs()).sum(dim=0)
            costs.append((spread + _RENDER_SHARE * (mean - render).abs()).mean(dim=0, keepdim=True))
        cost = F.avg_pool2d(torch.stack(costs), window, 1, window // 2, count_include_pad=False)
        best = (torch.softmax(-cost / _DECISIVENESS, dim=0) * torch.stack(offsets)).sum(dim=0, keepdim=True)
        best = F.interpolate(best, depth.shape[:2], mode="bilinear", align_corners=False)[0].movedim(0, -1)
        return depth * best.exp()

    def _same_surface(self, at: Tensor, z: Tensor, other: View, layers: Tensor) -> Tensor:
        """[H, W, 1] in [0, 1]: whether `other` shows at `at` what lies at depth `z` before it."""
        there = sample(layers[:, 6:], at, other).movedim(0, -1)
        distance = (z - there) / (self.settings.depth_tolerance * z.clamp_min(1e-6))
        return torch.exp(-distance.square()) * (z > 0) * inside(at, other, ramp=_BORDER)

    def _blend(
        self, view: View, rgb: Tensor, depth: Tensor, references: Sequence[tuple[View, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """The references' residuals as `view` sees them [H, W, 3], and how well they agree with it [H, W, 1]."""
        points = lift(view, depth)
        residuals, agreements, nearness = [], [], []
        for other, layers in references:
            at, z = epipolar(view, other, view.height, view.width).project(depth)
            photo, residual = sample(layers[:, :6], at, other).movedim(0, -1).split(3, dim=-1)
            difference = (photo - residual - rgb).square().mean(dim=-1, keepdim=True)
            same_colour = torch.exp(-difference / self.settings.colour_tolerance**2)
            agreement = _chw(same_colour * self._same_surface(at, z, other, layers))
            # a decision for each pixel alone speckles
            agreement = F.avg_pool2d(agreement, _TOGETHER, 1, _TOGETHER // 2, count_include_pad=False)
            agreements.append(agreement[0].movedim(0, -1) * inside(at, other) * (depth > 0))
            angle = angle_squared(points, view.centre, other.centre)
            nearness.append((angle + self.settings.angle**2) ** -2)
            residuals.append(residual)
        near = torch.stack(nearness)
        weights = torch.stack(agreements) * (near / near.amax(dim=0))
        total = weights.sum(dim=0)
        return (weights * torch.stack(residuals)).sum(dim=0) / (total + 1e-6), total


def _chw(image: Tensor) -> Tensor:
    """[H, W, C] -> [1, C, H, W]."""
    return image.movedim(-1, 0)[None]
