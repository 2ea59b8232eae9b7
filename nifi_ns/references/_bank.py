"""Reference residuals: repair a view, without training, from the photos that the splats were made of.

The splats know roughly where everything is, the photos know what it looks like. For a new view: correct the rendered
depth until the photos around agree on what is there (`stereo`), lift each pixel to 3D, look up in those photos what
their own renders got wrong, and add the blend of it to the render. Where no photo sees a pixel, the render stays.

Only pictures, depths and cameras come in, so that anything that renders colour and depth can be repaired.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from nifi_ns.references._exposure import fit_gains, kept_gains
from nifi_ns.references._stereo import (
    Sighting,
    StereoSettings,
    agree,
    box_mean,
    chw,
    hwc,
    same_surface,
    sweep,
    together,
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
"""Draws a view: colour [H, W, 3], and depth along the optical axis [H, W, 1] that is 0 where nothing is."""

_CHOICE_ROWS = 20
"""Rows of the grid of points by which references are chosen."""
_TOGETHER = 9
"""Side in pixels of the squares that are taken from a reference together."""
_RENDER_SAYS = 0.1
"""How much a render has to say about the depth, relative to the photos around."""
_PHOTO_SAYS = 1.0
"""The same of a view's own photo."""


@dataclass(frozen=True)
class ReferenceSettings:
    """How photos are chosen, aligned and blended. The defaults serve scenes of any size: nothing here is in metres."""

    count: int = 8
    """Photos that a view is repaired from."""
    stereo: StereoSettings = field(default_factory=StereoSettings)
    """How depth is corrected."""
    colour_tolerance: float = 0.10
    """Difference of the two renders at which they are taken to show different things."""
    angle: float = 0.05
    """Angle between two lines of sight, in radians, below which photos count as equally near."""
    doubt: float = 0.05
    """Squared agreement, in [0, 1], at which half of the residual is added."""
    cache_size: int = 64
    """References that are kept with their renders and depths."""


class ReferenceBank:
    """The photos of a capture, and on demand what a render of the same splats gets wrong in them."""

    def __init__(
        self,
        views: Sequence[View],
        render: Renderer,
        *,
        settings: ReferenceSettings | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Collect the references; they are rendered when they are first needed.

        Args:
            views: the training views, each with its photo.
            render: draws any view of the splats under repair.
            settings: see `ReferenceSettings`.
            check: called between the parts of what takes long; what it raises ends that.

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
        """Repair `rgb`, what `render` draws of `view` along with `depth`.

        Args:
            view: the camera; its photo is not looked at.
            rgb: colour in [0, 1].
            depth: along the optical axis, in the units of the cameras; 0 where nothing is.
            exclude: names of references not to use: the view itself, when pairs for training are made. Its photo still
                helped to correct the depths of the others.

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
        references = together([self._reference(i, rgb.device) for i in chosen])
        stereo = self.settings.stereo
        for over in stereo.coarse:
            depth = sweep(view, rgb, depth, references, stereo, over, say=_RENDER_SAYS)
        depth = agree(view, depth, references, stereo)
        for over in stereo.fine:
            depth = sweep(view, rgb, depth, references, stereo, over, say=_RENDER_SAYS)
        residual, agreement = self._blend(view, rgb, depth, references)
        confidence = agreement / (agreement + self.settings.doubt)
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
        """Indices of the `count` references (by default as many as the settings say) that together see most of what
        `view` sees, from nearby; the best first.

        Greedy: each next one adds most to the sum over points of the square root of how well they are seen, so that a
        second look at a point counts less than a first look at another. With `occlusion` a point counts for a reference
        whose own depth shows it, too; who weighs that for each pixel, as `restore` does, need not ask here.
        """
        self._check()
        height = min(_CHOICE_ROWS, view.height)
        width = max(1, round(height * view.width / view.height))
        coarse = F.interpolate(chw(depth), (height, width), mode="nearest")[0].movedim(0, -1)
        points = lift(view, coarse).flatten(0, 1)
        scores = visibility(points, view, self._stacked(depth.device))
        scores = (scores * (coarse > 0).flatten()).cpu()  # once: every choice has to be known here
        for i, reference in enumerate(self._cameras):
            if reference.name in exclude:
                scores[i] = 0
        total, chosen, checked = torch.zeros_like(scores[0]), [], set()
        while len(chosen) < (self.settings.count if count is None else count):
            gains = ((total + scores).sqrt() - total.sqrt()).sum(dim=1)
            best = int(gains.argmax())
            if gains[best] <= 0:
                break
            if occlusion and best not in checked:  # which lowers gains, so only the best has to be drawn
                checked.add(best)
                scores[best] *= self._unoccluded(best, points).cpu()
                continue
            chosen.append(best)
            total, scores[best] = total + scores[best], 0
        return chosen

    def _unoccluded(self, index: int, points: Tensor) -> Tensor:
        """[P] in [0, 1]: whether a reference's depth shows the surface at `points` [P, 3], or something before it."""
        other = self._drawn(index, points.device)
        at, z = project(other.view, points)
        return same_surface(at[None, None], z[None, None], other, self.settings.stereo.tolerance, ramp=1.0).flatten()

    def photo(self, index: int) -> Tensor:
        """[H, W, 3] in [0, 1]: the photo of a reference that `choose` has named."""
        image = self._views[index].image
        assert image is not None
        return image

    # A reference in three stages, each of which looks at its neighbours in the stage before: as drawn, with the depth
    # that the photos around agree with, and with the depth that the views around agree with.

    def _draw(self, index: int, device: torch.device) -> Sighting:
        view = self._views[index].to(device)
        rgb, depth = self._render(view)
        assert view.image is not None
        rgb, photo = chw(rgb.clamp(0, 1)), chw(view.image)
        gain = fit_gains(photo, rgb)
        photo = photo / gain
        return Sighting(self._cameras[index].to(device), photo, photo - rgb, chw(depth), gain)

    def _sweep(self, index: int, device: torch.device) -> Sighting:
        sighting, stereo = self._drawn(index, device), self.settings.stereo
        around = [self._drawn(i, device) for i in self._around(index, device)]
        if not around or not stereo.coarse:
            return sighting
        photo, depth, others = hwc(sighting.photo), hwc(sighting.depth), together(around)
        for over in stereo.coarse:
            depth = sweep(sighting.view, photo, depth, others, stereo, over, say=_PHOTO_SAYS)
        return sighting._replace(depth=chw(depth))

    def _agree(self, index: int, device: torch.device) -> Sighting:
        sighting = self._swept(index, device)
        around = [self._swept(i, device) for i in self._around(index, device)]
        if not around:
            return sighting
        depth = agree(sighting.view, hwc(sighting.depth), together(around), self.settings.stereo)
        return sighting._replace(depth=chw(depth))

    def _around(self, index: int, device: torch.device) -> list[int]:
        sighting = self._drawn(index, device)
        return self.choose(sighting.view, hwc(sighting.depth), exclude=(sighting.view.name,))

    def _blend(self, view: View, rgb: Tensor, depth: Tensor, references: Sighting) -> tuple[Tensor, Tensor]:
        """The references' residuals as `view` sees them [H, W, 3], and how well they agree with it [H, W, 1]."""
        at, z = epipolar(view, references.view, pixels(depth.shape[:2], depth.device)).project(depth)
        both = torch.cat([references.photo, references.residual], dim=1)
        photo, residual = sample(both, at).split(3, dim=1)
        difference = (photo - residual - chw(rgb)).square().mean(dim=1, keepdim=True)
        same_colour = torch.exp(-difference / self.settings.colour_tolerance**2)
        surface = same_surface(at, z, references, self.settings.stereo.tolerance).movedim(-1, 1)
        # a decision for each pixel alone speckles
        agreement = box_mean(same_colour * surface, _TOGETHER)
        agreement = (agreement * inside(at, references.view).movedim(-1, 1) * chw(depth > 0)).square()
        angle = angle_squared(lift(view, depth), view.centre, centres(references.view))[:, None]
        nearness = (angle + self.settings.angle**2) ** -2
        weights = agreement * (nearness / nearness.amax(dim=0))
        total = weights.sum(dim=0, keepdim=True)
        residual = residual + (kept_gains(references.gain, weights.mean(dim=(1, 2, 3))) - 1) * photo
        return hwc((weights * residual).sum(dim=0, keepdim=True) / (total + 1e-6)), hwc(total)
