"""Restores views of a model: a request for one view, and the object that serves requests."""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nifi_ns.errors import NifiError
from nifi_ns.plugin.restoration.restorable import RenderSnapshot, RestorableModel
from nifi_ns.plugin.restoration.restoration_choice import RestorationChoice
from nifi_ns.views import View

if TYPE_CHECKING:
    from nifi_ns.references import ReferenceBank
    from nifi_ns.restore import Restorer


class Restored(NamedTuple):
    """A restorer's input and output for one view, each [H, W, 3] in [0, 1]."""

    before: Tensor
    after: Tensor


@dataclass(frozen=True, eq=False)
class ViewRequest:
    """A request to restore one view: the camera, its render, and how to restore it.

    Each result is computed when it is first read, and kept.
    """

    restorer: "ViewRestorer"
    view: View
    rgb: Tensor
    """The render, [H, W, 3] in [0, 1]."""
    depth: Tensor | None
    """The expected depth along the optical axis, [H, W, 1], 0 where nothing is rendered."""
    snapshot: RenderSnapshot
    """The state that `rgb` and `depth` were rendered from."""
    choice: RestorationChoice | None = None
    """How to restore; None: as the model's restorer was trained."""
    exclude: str | None = None
    """Name of a photo that must not be used: the view's own, when training pairs are written."""

    @cached_property
    def residuals(self) -> tuple[Tensor, Tensor]:
        """The render corrected by reference residuals, [H, W, 3], and the confidence in [0, 1], [H, W, 1].

        Raises:
            NifiError: if the model has no photos, or depth was not rendered.
        """
        excluded = () if self.exclude is None else (self.exclude,)
        bank = self.restorer.reference_bank(self.snapshot)
        return bank.restore(self.view, self.rgb, self._depth, exclude=excluded)

    @property
    def referenced(self) -> Tensor:
        """The render corrected by reference residuals, [H, W, 3]. Raises as `residuals`."""
        return self.residuals[0]

    @cached_property
    def restored(self) -> Restored:
        """The restorer's input, and its output at full strength.

        Raises:
            NifiError: if there is neither a restorer nor `use_photos`, or if either is not available.
        """
        how = self.resolved_choice
        if how.restorer is None and not how.use_photos:
            raise NifiError(
                "no restorer: train one with ns-nifi-train, or set model.restorer in config.yml; "
                "in the viewer, Use photos works without one"
            )
        before = self.referenced if how.use_photos else self.rgb
        if how.restorer is None:
            return Restored(before, before)
        network = self.restorer.load(how.restorer)
        photos = self.photos(network.settings.attended_photos)
        return Restored(before, network(before, strength=1.0, attended_photos=photos).to(self.rgb))

    @property
    def picture(self) -> Tensor:
        """The restored view to display, [H, W, 3] in [0, 1]. Raises as `restored`."""
        return self.resolved_choice.blend(self.rgb, *self.restored)

    @cached_property
    def resolved_choice(self) -> RestorationChoice:
        """`choice`, or how the model's restorer was trained to be used."""
        return self.choice or self.restorer.trained_choice(self.restorer.model.restorer_folder)

    def photos(self, count: int) -> list[Tensor]:
        """Return the `count` photos that show most of the view, [H, W, 3] each, of any size, the best first."""
        if count == 0:
            return []
        bank = self.restorer.reference_bank(self.snapshot)
        excluded = () if self.exclude is None else (self.exclude,)
        chosen = bank.choose(self.view, self._depth, count=count, exclude=excluded, occlusion=True)
        return [bank.photo(index) for index in chosen]

    @property
    def _depth(self) -> Tensor:
        if self.depth is None:
            raise NifiError("photos cannot be used while the model is in training mode: depth is not rendered")
        return self.depth


class ViewRestorer:
    """Serves requests for restored views of one model. Keeps the photos' residuals and the last restorer in memory.

    A plain object, not a module, so that checkpoints of the model contain no diffusion backbone.
    """

    def __init__(self, model: RestorableModel, check: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            model: the model whose views are restored.
            check: called between the parts of long work. It may raise an exception to end the work.
        """
        self.model = model
        self._check = check
        self._lock = threading.RLock()
        self._bank: tuple[Hashable, ReferenceBank] | None = None
        self._loaded: tuple[Hashable, Restorer] | None = None

    def request(
        self,
        view: View,
        rgb: Tensor,
        depth: Tensor | None,
        *,
        snapshot: RenderSnapshot | None = None,
        choice: RestorationChoice | None = None,
        exclude: str | None = None,
    ) -> ViewRequest:
        """Return a request for one view, see `ViewRequest`; `snapshot` defaults to what the model renders now."""
        return ViewRequest(self, view, rgb, depth, snapshot or self.model.snapshot(), choice, exclude)

    def reference_bank(self, snapshot: RenderSnapshot) -> "ReferenceBank":
        """Return the capture's photos and their residuals against `snapshot`.

        Raises:
            NifiError: if the model has no photos.
        """
        from nifi_ns.references import ReferenceBank, ReferenceSettings

        model = self.model
        if model.train_views is None:
            raise NifiError("reference residuals need the capture's photos, which this pipeline does not have")
        key = model.training_step, snapshot.key
        with self._lock:
            if self._bank is None or self._bank[0] != key:
                settings = ReferenceSettings(count=model.config.num_reference_photos)
                bank = ReferenceBank(model.train_views, snapshot.draw, settings=settings, check=self._check)
                self._bank = key, bank
            return self._bank[1]

    def clear_reference_bank(self) -> None:
        """Discard the residuals, because the model has changed."""
        self._bank = None

    def load(self, restorer: Path) -> "Restorer":
        """Return a restorer, from memory if it is the last one used and was not trained again since.

        Raises:
            NifiError: if it does not exist or cannot be read.
        """
        from nifi_ns.restore import Restorer

        key = _identity(restorer)
        with self._lock:
            if self._loaded is None or self._loaded[0] != key:
                self._loaded = None  # memory may not suffice for two backbones
                self._loaded = key, Restorer.from_pretrained(restorer, device=self.model.device)
            return self._loaded[1]

    def use(self, restorer: "Restorer") -> None:
        """Use `restorer`, which was loaded with other options, in place of the one in the model's `restorer_folder`."""
        folder = self.model.restorer_folder
        assert folder is not None
        with self._lock:
            self._loaded = _identity(folder), restorer

    def trained_choice(self, restorer: Path | None) -> RestorationChoice:
        """Return how `restorer` was trained to be used. Raises as `load`."""
        if restorer is None:
            return RestorationChoice()
        settings = self.load(restorer).settings
        return RestorationChoice(restorer, use_photos=settings.input == "referenced", strength=settings.strength)


def make_or_exit(make: Callable[[], Tensor | Restored]) -> Tensor | Restored:
    """Return `make()`. An error that the user can fix ends the command with one line."""
    try:
        return make()
    except (NifiError, torch.cuda.OutOfMemoryError) as error:
        raise SystemExit(f"error: {error}") from error


def _identity(restorer: Path) -> Hashable:
    """Return a key that changes when the restorer is trained again."""
    about = restorer / "restorer.json"
    return restorer, about.stat().st_mtime_ns if about.is_file() else 0
