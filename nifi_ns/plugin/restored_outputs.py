"""Restored views of any nerfstudio model that draws colour and depth: a mixin, and its part of the config."""

from abc import ABC
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from torch import Tensor

from nifi_ns.errors import NifiError
from nifi_ns.plugin.dataset_views import view_of
from nifi_ns.plugin.lazy_outputs import LazyOutputs
from nifi_ns.plugin.panel import Panel, Restoration
from nifi_ns.plugin.restorable import Restorable, Shown
from nifi_ns.plugin.speed import STOPWATCH
from nifi_ns.plugin.viewer_worker import render_thread
from nifi_ns.views import View

if TYPE_CHECKING:
    from nifi_ns.references import ReferenceBank
    from nifi_ns.restore import Restorer


@dataclass
class RestoredViewsConfig:
    """How views are restored."""

    restorer: Path | None = None
    """Folder of a trained restorer; by default the run's `nifi/restorer`, where `ns-nifi-train` puts it."""
    restore_rgb: bool = False
    """Whether `rgb` itself is restored, for commands that know no other output name."""
    num_references: int = 8
    """How many of the capture's photos guide `rgb_referenced`."""


class RestoredViews(Restorable, ABC):
    """Gives a model the outputs `rgb_referenced`, `rgb_restored` and `restoration_change`, and the viewer a panel.

    The first is guided by the capture's photos, the second by the restorer, the third ([H, W, 1]) the mean absolute
    change of both. They are computed when read; in the viewer they are as `rgb` until they are ready. Put it before the
    model's class among the bases.
    """

    _bank: "tuple[Hashable, ReferenceBank] | None" = None
    _loaded: "tuple[Hashable, Restorer] | None" = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.panel = Panel(self)

    # -- outputs -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Any]:
        """The model's outputs and the lazy ones (see the class), of one camera, cropped to `obb_box`."""
        camera = camera.to(self.device)
        with STOPWATCH.time("rendering"):
            outputs = LazyOutputs(super().get_outputs_for_camera(camera, obb_box))
        view, rgb = view_of(camera), outputs["rgb"]
        more = self.more_outputs(view, obb_box)
        viewer = render_thread()
        if viewer is not None and viewer.state != "high":  # its camera moves
            outputs.update(dict.fromkeys(more, rgb), restoration_change=torch.zeros_like(rgb[..., :1]))
            outputs.update(rgb_referenced=rgb, rgb_restored=rgb)
            return outputs
        outputs.update(more)
        shown, recipes = self.shown(), LazyOutputs()
        if viewer is None:
            chosen = lambda: self.restoration_by(self.restorer_folder)  # noqa: E731
            in_rgb, read = self.config.restore_rgb, lambda name: _or_exit(lambda: recipes[name])
        else:
            restoration = self.panel.restoration
            chosen, in_rgb = lambda: restoration, restoration.in_rgb
            ident = (shown.key, _ident(view, obb_box), restoration.restorer, restoration.references)
            read = self.panel.read(ident, recipes)
        recipes["referenced"] = lambda: self.reference(view, rgb, self.depth_of(view, outputs), shown=shown)
        photos = lambda count: self.photos(view, self.depth_of(view, outputs), count, shown)  # noqa: E731
        recipes["restored"] = lambda: self.restoration(rgb, lambda: recipes["referenced"], photos, chosen())

        def restored() -> Tensor:
            pair = read("restored")
            return rgb if pair is None else chosen().shown(rgb, *pair)

        def referenced() -> Tensor:
            picture = read("referenced")
            return rgb if picture is None else picture

        # the viewer's split screen starts with the last
        outputs["restoration_change"] = lambda: (outputs["rgb_restored"] - rgb).abs().mean(dim=-1, keepdim=True)
        outputs["rgb_referenced"] = referenced
        outputs["rgb_restored"] = restored
        if in_rgb:
            outputs["rgb"] = lambda: outputs["rgb_restored"]
        return outputs

    # -- restoring ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reference(
        self, view: View, rgb: Tensor, depth: Tensor, exclude: str | None = None, shown: Shown | None = None
    ) -> Tensor:
        """[H, W, 3]: `rgb` corrected by what the capture's photos show where the model puts them.

        `exclude` names a photo that may not be used: the one of the view itself, when training pairs are made. `shown`
        is what `rgb` and `depth` were drawn of, by default what the model shows now.
        """
        excluded = () if exclude is None else (exclude,)
        return self.references(shown or self.shown()).restore(view, rgb, depth, exclude=excluded)[0]

    @torch.no_grad()
    def photos(self, view: View, depth: Tensor, count: int, shown: Shown | None = None) -> list[Tensor]:
        """[H, W, 3] each, of any size: the `count` of the capture's photos that see most of what `view` sees."""
        bank = self.references(shown or self.shown())
        return [bank.photo(index) for index in bank.choose(view, depth, count=count, occlusion=True)]

    def references(self, shown: Shown) -> "ReferenceBank":
        """The capture's photos, beside what the model shows."""
        from nifi_ns.references import ReferenceBank, ReferenceSettings

        if self.train_views is None:
            raise NifiError("restoring by reference photos needs the capture's, and this pipeline has none")
        key = (self.training_step, shown.key)
        if self._bank is None or self._bank[0] != key:
            settings = ReferenceSettings(count=self.config.num_references)
            check = self.panel.late.check
            self._bank = key, ReferenceBank(self.train_views, shown.draw, settings=settings, check=check)
        return self._bank[1]

    def forget_references(self) -> None:
        """Draw the photos' views anew when they are next needed: the model shows something else now."""
        self._bank = None

    def restorer_in(self, folder: Path) -> "Restorer":
        """The restorer in `folder`, of which the last is kept; a plain object, so that no checkpoint swallows it.

        Raises:
            NifiError: if there is none.
        """
        from nifi_ns.restore import Restorer

        key = _written(folder)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # two backbones may be more than memory holds
            self._loaded = key, Restorer.from_pretrained(folder, device=self.device)
        return self._loaded[1]

    def use_restorer(self, restorer: "Restorer") -> None:
        """Take `restorer`, loaded in another way, for the one in `restorer_folder`."""
        assert self.restorer_folder is not None
        self._loaded = _written(self.restorer_folder), restorer

    def restoration_by(self, folder: Path | None) -> Restoration:
        """The restoration that the restorer in `folder` was trained for.

        Raises:
            NifiError: if there is no restorer.
        """
        if folder is None:
            return Restoration()
        settings = self.restorer_in(folder).settings
        return Restoration(folder, references=settings.input == "referenced", strength=settings.strength)

    def restoration(
        self,
        rgb: Tensor,
        referenced: Callable[[], Tensor],
        photos: Callable[[int], Sequence[Tensor]],
        how: Restoration,
    ) -> tuple[Tensor, Tensor]:
        """What the restorer sees of a view, `rgb` or `referenced()`, and all that it makes of it: [H, W, 3] each.

        `photos` gives as many as the restorer was trained to look at.

        Raises:
            NifiError: if there is neither a restorer nor are there reference photos.
        """
        if how.restorer is None and not how.references:
            raise NifiError(
                "no restorer: train one with ns-nifi-train, or name one as model.restorer in config.yml; "
                "in the viewer, Use photos needs none"
            )
        before = referenced() if how.references else rgb
        if how.restorer is None:
            return before, before
        restorer = self.restorer_in(how.restorer)
        looked_at = photos(restorer.settings.attended_photos) if restorer.settings.attended_photos else ()
        return before, restorer(before, strength=1.0, attended_photos=looked_at).to(rgb)

    def restore(
        self, rgb: Tensor, referenced: Callable[[], Tensor], photos: Callable[[int], Sequence[Tensor]]
    ) -> Tensor:
        """[H, W, 3] in [0, 1]: the restorer's view of `rgb`, or of `referenced()` if it was trained on such."""
        how = self.restoration_by(self.restorer_folder)
        return how.shown(rgb, *self.restoration(rgb, referenced, photos, how))

    def get_image_metrics_and_images(
        self, outputs: dict[str, Any], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Every metric that can be had, of the compressed view, and of the referenced and restored ones where they can.

        Names are those of `nifi_ns.metrics`, with `referenced_` and `restored_` in front. Evaluations in the midst of
        training leave the referenced views out: they would render several photos' views for each.
        """
        from nifi_ns.metrics import compute

        photo = self.photo(outputs, batch)
        shown = {"": outputs["rgb"]}
        if self.train_views is not None and not self._in_training:
            shown["referenced_"] = outputs["rgb_referenced"]
        if self.restorer_folder is not None:
            shown["restored_"] = outputs["rgb_restored"]
        measured = {prefix: compute(image, photo) for prefix, image in shown.items()}
        metrics = {p + name: value for p, row in measured.items() for name, value in row.items() if value is not None}
        return metrics, {"img": torch.cat([photo, *shown.values()], dim=1)}


def _or_exit(restored: Callable[[], Any]) -> Any:
    """`restored()`; where it fails, the command ends in one line."""
    try:
        with STOPWATCH.time("restoring"):
            return restored()
    except (NifiError, torch.cuda.OutOfMemoryError) as error:
        raise SystemExit(f"error: {error}") from error


def _written(folder: Path) -> Hashable:
    """Another for a restorer that has been trained anew."""
    about = folder / "restorer.json"
    return folder, about.stat().st_mtime_ns if about.is_file() else 0


def _ident(view: View, obb_box: OrientedBox | None) -> Hashable:
    """Equal for equal cameras and crops."""
    box = () if obb_box is None else (obb_box.R, obb_box.T, obb_box.S)
    return view.width, view.height, *(tuple(part.flatten().tolist()) for part in (view.viewmat, view.K, *box))
