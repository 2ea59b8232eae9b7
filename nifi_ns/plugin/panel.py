"""The NiFi panel of nerfstudio's viewer: which scene file is shown, and how its views are restored."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer_elements import ViewerControl
from torch import Tensor

from nifi_ns.files import format_size
from nifi_ns.plugin.viewer_worker import EXPECTED, Late, redraw, render_thread

if TYPE_CHECKING:
    from nerfstudio.viewer.viewer import Viewer

    from nifi_ns.plugin.lazy_outputs import LazyOutputs
    from nifi_ns.plugin.restored_outputs import RestoredViews
    from nifi_ns.splats import Splats

TRAINING, UNCOMPRESSED = "training", "uncompressed"
NO_RESTORER, OTHER = "none", "another folder"
_NOTHING = "Nothing restored yet."
_RED = (1.0, 0.1, 0.1)


@dataclass(frozen=True)
class Restoration:
    """How views are restored, and how the result is shown."""

    restorer: Path | None = None
    """Folder of a restorer; None: there is none, only reference photos."""
    references: bool = False
    """Whether the restorer sees the view as the reference photos correct it."""
    strength: float = 1.0
    """Share of the restorer's change that is shown."""
    in_rgb: bool = False
    """Whether `rgb` is shown restored, too."""
    overlay: bool = False
    """Whether restored views are tinted where restoration changed them."""

    def shown(self, rgb: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """[H, W, 3] in [0, 1]: `rgb` restored, given what the restorer saw and what it made of it, all [H, W, 3]."""
        picture = before.lerp(after, self.strength)
        if not self.overlay:
            return picture
        change = (picture - rgb).abs().mean(dim=-1, keepdim=True)
        # fully tinted where the change is among the strongest of this view, unless even those are hard to see
        most = change.flatten().quantile(0.99).clamp(min=4 / 255)
        return picture.lerp(picture.new_tensor(_RED), 0.8 * (change / most).clamp(0, 1))


class Panel(ViewerControl):
    """What the viewer's user has chosen. Nerfstudio finds it as an attribute of the model, and calls `_setup`.

    Its callbacks hold no lock: reading a scene file does not keep training waiting, nor does restoring.
    """

    def __init__(self, model: "RestoredViews") -> None:
        self._model = model
        self._nifi = Path()
        self._scene: Splats | None = None
        self._plain = 0
        self._about = ("", _NOTHING)
        self._last = ""
        self.late = Late(self._begin, self._done, self._fail)

    # -- what the model asks -----------------------------------------------------------------------------------------

    @property
    def rate(self) -> str | None:
        """Name of what is shown in this thread if not what the model holds."""
        return None if self.scene is None else self._rate.value

    @property
    def scene(self) -> "Splats | None":
        """What is shown in this thread in place of the model's own splats: only ever in a viewer's render thread."""
        return self._scene if render_thread() is not None else None

    @property
    def restoration(self) -> Restoration:
        """How views are restored."""
        return Restoration(
            restorer=self._restorer_folder(),
            references=self._references.value,
            strength=self._strength.value,
            in_rgb=self._restore.value,
            overlay=self._overlay.value,
        )

    def read(self, ident: Hashable, recipes: "LazyOutputs") -> "Callable[[str], Any]":
        """A function that gives a viewer's values by name, None until they are made: see `Late.get`."""
        viewer = render_thread()
        assert viewer is not None
        self._refresh()
        return lambda name: self.late.get(viewer, name, ident, self._model.training_step, recipes)

    # -- building ----------------------------------------------------------------------------------------------------

    def _setup(self, viewer: "Viewer") -> None:
        super()._setup(viewer)
        self._nifi = viewer.log_filename.parent / "nifi"
        gui, model = viewer.viser_server.gui, self._model
        self._look()
        self._restorers = self._list_restorers()
        start = self._start_restorer()
        # between the statistics and the tabs, so that it is seen in each of them
        with gui.add_folder("NiFi", order=viewer.stats_markdown.order + 0.5):
            self._rate = gui.add_dropdown(
                "Rate",
                tuple(self._rates),
                self._start_rate(),
                visible=model.uncompressed_splats is not None,
                hint="What is shown: a scene file of this run, or the splats before compression",
            )
            self._restore = gui.add_checkbox(
                "Restore",
                model.config.restore_rgb,
                hint="Shows rgb restored. Leave it off in split screen, to compare rgb with rgb_restored",
            )
            self._restorer = gui.add_dropdown(
                "Restorer", (*self._restorers, NO_RESTORER, OTHER), start, hint="Those in the run's nifi folder"
            )
            self._folder = gui.add_text(
                "Folder", str(model.restorer_folder or ""), visible=start == OTHER, hint="of a trained restorer"
            )
            self._strength = gui.add_slider(
                "Strength", 0.0, 1.0, 0.05, 1.0, hint="Share of the restorer's change that is shown"
            )
            self._references = gui.add_checkbox(
                "Use photos",
                False,
                disabled=model.train_views is None,
                hint="Correct the view by the capture's photos, before the restorer sees it",
            )
            self._overlay = gui.add_checkbox(
                "What changed", False, hint="Tints restored views red where restoration changed them"
            )
            self._status = gui.add_markdown("")
        for element in (self._restore, self._strength, self._references, self._overlay):
            element.on_update(lambda _: self._redraw())
        self._rate.on_update(lambda _: self._choose_rate())
        for element in (self._restorer, self._folder):
            element.on_update(lambda _: self._choose_restorer())
        self._choose_restorer()
        self._say(size=self._describe())

    def _look(self) -> None:
        """List what can be shown: labels, each with its scene file if it is one."""
        self._found = self._findable()
        files, training, compressing = self._found
        splats = self._model.uncompressed_splats
        self._plain = 0 if splats is None or training else splats.ply_size
        self._rates: dict[str, Path | None] = {TRAINING: None} if training else {}
        self._rates |= {_label(file, self._plain): file for file in sorted(files, key=_size)}
        if compressing or not training:
            self._rates[UNCOMPRESSED] = None

    def _findable(self) -> tuple[tuple[Path, ...], bool, bool]:
        """The run's scene files, whether there will be one more, and whether that is in the making."""
        compressing = getattr(self._model, "uncompressed", None) is not None
        return tuple(sorted(self._nifi.glob("*/scene.nifi"))), self._model.still_training, compressing

    def _list_restorers(self) -> dict[str, Path]:
        return {file.parent.name: file.parent for file in sorted(self._nifi.glob("*/restorer.json"))}

    def _start_rate(self) -> str:
        """The label of what the model itself shows."""
        if self._model.still_training:
            return TRAINING
        file = self._model.shown_file
        same = (label for label, path in self._rates.items() if path and file and path.resolve() == file.resolve())
        return next(same, UNCOMPRESSED)

    def _start_restorer(self) -> str:
        folder = self._model.restorer_folder
        if folder is None:
            return next(iter(self._restorers), NO_RESTORER)
        same = (name for name, path in self._restorers.items() if path.resolve() == folder.resolve())
        return next(same, OTHER)

    def _refresh(self) -> None:
        """Offer the files and restorers that have come or gone, as when training ends."""
        if self._findable() != self._found:
            before, chosen = self._rates.get(self._rate.value), self._rate.value
            self._look()
            self._rate.options = tuple(self._rates)
            # the same file may have another label now
            same = (label for label, file in self._rates.items() if file == before and before is not None)
            self._rate.value = chosen if chosen in self._rates else next(same, self._start_rate())
        restorers = self._list_restorers()
        if restorers.keys() != self._restorers.keys():
            before, self._restorers = self._restorers, restorers
            self._restorer.options = (*restorers, NO_RESTORER, OTHER)
            if not before and self._restorer.value == NO_RESTORER:
                self._restorer.value = next(iter(restorers))

    # -- what the user does ------------------------------------------------------------------------------------------

    def _choose_rate(self) -> None:
        chosen = self._rate.value
        scene, file = None, self._rates.get(chosen)
        try:
            if chosen != self._start_rate():
                self._say(size=f"Reading {chosen} …")
                scene = self._model.uncompressed_splats if file is None else _read(file, file.stat().st_mtime_ns)
                scene = None if scene is None else scene.to(self._model.device)
            if chosen == self._rate.value:  # else there is a newer choice
                self._scene = scene
                self._say(size=self._describe())
                self._redraw()
        except EXPECTED as error:
            self._say(size=_one_line(error))

    def _choose_restorer(self) -> None:
        self._folder.visible = self._restorer.value == OTHER
        folder = self._restorer_folder()
        self._strength.disabled = folder is None
        try:
            trained = self._model.restoration_by(folder)
        except EXPECTED as error:
            self._say(time=f"Not restored: {_one_line(error)}")
        else:
            # as it was trained, and as its folder says
            self._references.value = trained.references and self._model.train_views is not None
            self._strength.value = trained.strength
        self.late.forget()
        self._redraw()

    def _restorer_folder(self) -> Path | None:
        name = self._restorer.value
        if name == OTHER:
            return Path(self._folder.value).expanduser() if self._folder.value.strip() else None
        return self._restorers.get(name)

    def _redraw(self) -> None:
        for machine in list(self.viewer.render_statemachines.values()):
            redraw(machine)

    # -- what it says ------------------------------------------------------------------------------------------------

    def _describe(self) -> str:
        file = self._rates.get(self._rate.value)
        if file is not None:
            ratio = f", {self._plain / _size(file):.0f}x smaller than the .ply" if self._plain else ""
            return f"Size: **{_size(file):,} bytes**{ratio}"
        return f"Size: **{self._plain:,} bytes** as a .ply" if self._plain else ""

    def _begin(self) -> None:
        self._say(time=f"{self._last}, restoring …" if self._last else "Restoring …")

    def _done(self, seconds: float | None) -> None:
        if seconds is not None:
            self._last = f"Last restoration: **{seconds:.2f} s**"
        self._say(time=self._last or _NOTHING)

    def _fail(self, error: BaseException) -> None:
        said = f"Not restored: {_one_line(error)}"
        if said != self._about[1] and not isinstance(error, EXPECTED):
            CONSOLE.print_exception()
        self._say(time=said)

    def _say(self, size: str | None = None, time: str | None = None) -> None:
        self._about = (self._about[0] if size is None else size, self._about[1] if time is None else time)
        self._status.content = "  \n".join(line for line in self._about if line)


@lru_cache(maxsize=4)
def _read(file: Path, modified: int) -> "Splats":
    from nifi_ns.compress import decode

    del modified  # a file that has been written anew is read anew
    return decode(file.read_bytes())


def _size(file: Path) -> int:
    return file.stat().st_size


def _label(file: Path, plain: int) -> str:
    ratio = f", {plain / _size(file):.0f}x" if plain else ""
    return f"{file.parent.name} ({format_size(_size(file))}{ratio})"


def _one_line(error: BaseException) -> str:
    """The message as markdown that is shown as it is: the viewer would take braces and the like for its own."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"`{text[:300].replace('`', chr(39))}`"
