"""Reference residuals: correct a render, without training, by the photos that the splats were trained on.

The splats give rough geometry, the photos give detail. For a new view: refine the rendered depth until the nearby
photos agree (`_stereo`), lift each pixel to 3D, look up in those photos the residual of photo minus render, and add the
blended residuals to the render. Pixels that no photo shows stay as rendered.

Inputs are pictures, depths and cameras only, so anything that renders colour and depth can be corrected.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from nifi_ns.references._exposure import fit_gains, shared_gains
from nifi_ns.references._stereo import (
    ReferenceView,
    StereoSettings,
    agree,
    box_mean,
    chw,
    hwc,
    same_surface,
    stack_references,
    sweep,
)
from nifi_ns.references._warping import (
    angle_squared,
    centres,
    epipolar,
    inside,
    lift,
    pixels,
    project,
    sample,
    stack,
    visibility,
)
from nifi_ns.views import View

Renderer = Callable[[View], tuple[Tensor, Tensor]]
"""Renders a view: colour [H, W, 3] in [0, 1], and depth along the optical axis [H, W, 1], 0 where nothing is."""

_CHOICE_ROWS = 20
"""Rows of the grid of points on which references are chosen."""
_AGREEMENT_WINDOW = 9
"""Side in pixels of the squares over which agreement with a reference is averaged."""
_RENDER_WEIGHT = 0.1
"""Weight of the render in the depth search, relative to the photos."""
_PHOTO_WEIGHT = 1.0
"""Weight of a view's own photo in the depth search."""


@dataclass(frozen=True)
class ReferenceSettings:
    """How photos are chosen, aligned and blended. Nothing here is in scene units, so the defaults suit any scene."""

    count: int = 8
    """Number of photos that correct a view."""
    stereo: StereoSettings = field(default_factory=StereoSettings)
    """How depth is refined."""
    colour_tolerance: float = 0.10
    """Difference of the two renders' colours at which they are considered to show different things."""
    angle: float = 0.05
    """Angle between lines of sight, in radians, below which photos count as equally near."""
    half_agreement: float = 0.05
    """Squared agreement, in [0, 1], at which half of the residual is added."""
    cache_size: int = 64
    """Number of references whose renders and depths are kept in memory."""


class ReferenceBank:
    """The photos of a capture, and on demand their residuals against renders of the same splats."""

    def __init__(
        self,
        views: Sequence[View],
        render: Renderer,
        *,
        settings: ReferenceSettings | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Collect the references. They are rendered when they are first needed.

        Args:
            views: the training views, each with its photo.
            render: renders any view of the splats.
            settings: see `ReferenceSettings`.
            check: called between the parts of long work; an exception that it raises ends the work.

        Raises:
            ValueError: if a view has no photo.
        """
        # indexing a sequence of views may load photos: keep only the cameras
        cameras = [(replace(view, image=None), view.image is None) for view in views]
        if missing := [camera.name for camera, without in cameras if without]:
            raise ValueError(f"references need photos: {', '.join(missing[:3])} have none")
        self._views = views
        self._cameras = [camera for camera, _ in cameras]
        self.settings = settings or ReferenceSettings()
        self._render, self._check = render, check
        kept = lru_cache(maxsize=self.settings.cache_size)
        self._drawn, self._swept, self._reference = kept(self._draw), kept(self._sweep), kept(self._agree)
        self._stacked = kept(lambda device: stack(self._cameras).to(device))

    @torch.no_grad()
    def restore(
        self,
        view: View,
        rgb: Tensor,  # [H, W, 3]
        depth: Tensor,  # [H, W, 1]
        *,
        exclude: Collection[str] = (),
    ) -> tuple[Tensor, Tensor]:
        """Correct a render by the residuals of nearby photos.

        Args:
            view: the camera; its photo is not used.
            rgb: the render of `view`, in [0, 1].
            depth: its depth along the optical axis, in the units of the cameras; 0 where nothing is.
            exclude: names of references that may not be used: the view itself when training pairs are made. Its photo
                has still helped to refine the depths of the others.

        Returns:
            The corrected colour [H, W, 3] in [0, 1], and the confidence [H, W, 1] in [0, 1]: the share of the residual
            that was added.

        Raises:
            ValueError: if `rgb` or `depth` does not have the view's size.
        """
        if rgb.shape != (view.height, view.width, 3) or depth.shape != (view.height, view.width, 1):
            raise ValueError(
                f"expected {(view.height, view.width)} pixels, got {tuple(rgb.shape)} and {tuple(depth.shape)}"
            )
        view = view.to(rgb.device)
        chosen = self.choose(view, depth, exclude=exclude)
        if not chosen:
            return rgb.clamp(0, 1), torch.zeros_like(depth)
        references = stack_references([self._reference(i, rgb.device) for i in chosen])
        stereo = self.settings.stereo
        for over in stereo.coarse:
            depth = sweep(view, rgb, depth, references, stereo, over, image_weight=_RENDER_WEIGHT)
        depth = agree(view, depth, references, stereo)
        for over in stereo.fine:
            depth = sweep(view, rgb, depth, references, stereo, over, image_weight=_RENDER_WEIGHT)
        residual, agreement = self._blend(view, rgb, depth, references)
        confidence = agreement / (agreement + self.settings.half_agreement)
        return (rgb + confidence * residual).clamp(0, 1), confidence

    @torch.no_grad()
    def choose(
        self,
        view: View,
        depth: Tensor,
        *,
        count: int | None = None,
        exclude: Collection[str] = (),
        occlusion: bool = False,
    ) -> list[int]:
        """Choose the references that together show most of `view` from nearby.

        Greedy: each one adds most to the sum over points of the square root of their visibility, so that seeing a point
        twice counts less than seeing another one for the first time.

        Args:
            view: the camera.
            depth: its depth along the optical axis, [H, W, 1]; 0 where nothing is.
            count: how many; by default as many as the settings say.
            exclude: names of references that may not be chosen.
            occlusion: count a point only where the reference's own depth shows it. `restore` tests this for each pixel
                anyway.

        Returns:
            Up to `count` indices, the best first.
        """
        self._check()
        height = min(_CHOICE_ROWS, view.height)
        width = max(1, round(height * view.width / view.height))
        coarse = F.interpolate(chw(depth), (height, width), mode="nearest")[0].movedim(0, -1)
        points = lift(view, coarse).flatten(0, 1)
        scores = visibility(points, view, self._stacked(depth.device))
        scores = (scores * (coarse > 0).flatten()).cpu()  # the greedy choice runs on the CPU: one copy, one wait
        for i, reference in enumerate(self._cameras):
            if reference.name in exclude:
                scores[i] = 0
        total, chosen, checked = torch.zeros_like(scores[0]), [], set()
        while len(chosen) < (self.settings.count if count is None else count):
            gains = ((total + scores).sqrt() - total.sqrt()).sum(dim=1)
            best = int(gains.argmax())
            if gains[best] <= 0:
                break
            if occlusion and best not in checked:  # the check only lowers gains, so only the best needs to be rendered
                checked.add(best)
                scores[best] *= self._unoccluded(best, points).cpu()
                continue
            chosen.append(best)
            total, scores[best] = total + scores[best], 0
        return chosen

    def _unoccluded(self, index: int, points: Tensor) -> Tensor:
        """Return whether a reference's own depth shows the points [P, 3] unoccluded: [P] in [0, 1]."""
        other = self._drawn(index, points.device)
        at, z = project(other.view, points)
        return same_surface(at[None, None], z[None, None], other, self.settings.stereo.tolerance, ramp=1.0).flatten()

    def photo(self, index: int) -> Tensor:
        """Return the photo of a reference that `choose` has returned, [H, W, 3] in [0, 1]."""
        image = self._views[index].image
        assert image is not None
        return image

    # A reference goes through three stages, each of which reads its neighbours in the stage before: as rendered; with
    # its depth refined by the nearby photos; with its depth refined by the nearby depths.

    def _draw(self, index: int, device: torch.device) -> ReferenceView:
        view = self._views[index].to(device)
        rgb, depth = self._render(view)
        assert view.image is not None
        rgb, photo = chw(rgb.clamp(0, 1)), chw(view.image)
        gain = fit_gains(photo, rgb)
        photo = photo / gain
        return ReferenceView(self._cameras[index].to(device), photo, photo - rgb, chw(depth), gain)

    def _sweep(self, index: int, device: torch.device) -> ReferenceView:
        reference, stereo = self._drawn(index, device), self.settings.stereo
        around = [self._drawn(i, device) for i in self._around(index, device)]
        if not around or not stereo.coarse:
            return reference
        photo, depth, others = hwc(reference.photo), hwc(reference.depth), stack_references(around)
        for over in stereo.coarse:
            depth = sweep(reference.view, photo, depth, others, stereo, over, image_weight=_PHOTO_WEIGHT)
        return reference._replace(depth=chw(depth))

    def _agree(self, index: int, device: torch.device) -> ReferenceView:
        reference = self._swept(index, device)
        around = [self._swept(i, device) for i in self._around(index, device)]
        if not around:
            return reference
        depth = agree(reference.view, hwc(reference.depth), stack_references(around), self.settings.stereo)
        return reference._replace(depth=chw(depth))

    def _around(self, index: int, device: torch.device) -> list[int]:
        reference = self._drawn(index, device)
        return self.choose(reference.view, hwc(reference.depth), exclude=(reference.view.name,))

    def _blend(self, view: View, rgb: Tensor, depth: Tensor, references: ReferenceView) -> tuple[Tensor, Tensor]:
        """Return the references' blended residuals in `view`, [H, W, 3], and their agreement with it, [H, W, 1]."""
        at, z = epipolar(view, references.view, pixels(depth.shape[:2], depth.device)).project(depth)
        both = torch.cat([references.photo, references.residual], dim=1)
        photo, residual = sample(both, at).split(3, dim=1)
        difference = (photo - residual - chw(rgb)).square().mean(dim=1, keepdim=True)
        same_colour = torch.exp(-difference / self.settings.colour_tolerance**2)
        surface = same_surface(at, z, references, self.settings.stereo.tolerance).movedim(-1, 1)
        # deciding on single pixels gives speckles
        agreement = box_mean(same_colour * surface, _AGREEMENT_WINDOW)
        agreement = (agreement * inside(at, references.view).movedim(-1, 1) * chw(depth > 0)).square()
        angle = angle_squared(lift(view, depth), view.centre, centres(references.view))[:, None]
        nearness = (angle + self.settings.angle**2) ** -2
        weights = agreement * (nearness / nearness.amax(dim=0))
        total = weights.sum(dim=0, keepdim=True)
        residual = residual + (shared_gains(references.gain, weights.mean(dim=(1, 2, 3))) - 1) * photo
        return hwc((weights * residual).sum(dim=0, keepdim=True) / (total + 1e-6)), hwc(total)
