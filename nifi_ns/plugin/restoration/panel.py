"""The NiFi panel in nerfstudio's viewer, for choosing the scene file and how views are restored."""

from collections.abc import Callable, Hashable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer_elements import ViewerControl

from nifi_ns.files import format_size
from nifi_ns.plugin.restoration.restorable import RestorableModel
from nifi_ns.plugin.restoration.restoration_choice import RestorationChoice
from nifi_ns.plugin.restoration.viewer_worker import EXPECTED_ERRORS, ViewerWorker, redraw, render_thread

if TYPE_CHECKING:
    from nerfstudio.viewer.viewer import Viewer

    from nifi_ns.splats import Splats

TRAINING, UNCOMPRESSED = "training", "uncompressed"
NO_RESTORER, OTHER = "none", "another folder"
_NOTHING = "Nothing restored yet."


class Panel(ViewerControl):
    """The choices of the viewer's user. Nerfstudio finds the panel as an attribute of the model, and calls `_setup`.

    Its callbacks hold no lock: training continues while a scene file is read or a view is restored.
    """

    def __init__(self, model: RestorableModel) -> None:
        self._model = model
        self._nifi = Path()
        self._scene: Splats | None = None
        self._ply_size = 0
        self._status_lines = ("", _NOTHING)
        self._last = ""
        self.worker = ViewerWorker(self._begin, self._done, self._fail)

    # -- what the model reads -----------------------------------------------------------------------------------------

    @property
    def rate(self) -> str | None:
        """The chosen rate, if it differs from the model's own."""
        return None if self.scene is None else self._rate.value

    @property
    def scene(self) -> "Splats | None":
        """The splats to render instead of the model's own; None outside the viewer's render threads."""
        return self._scene if render_thread() is not None else None

    @property
    def choice(self) -> RestorationChoice:
        """How views should be restored."""
        return RestorationChoice(
            restorer=self._restorer_folder(),
            use_photos=self._use_photos.value,
            strength=self._strength.value,
            in_rgb=self._restore.value,
            show_change=self._show_change.value,
        )

    def read_later(self, key: Hashable, source: object) -> Callable[[str], Any]:
        """Return a function that reads attributes of `source` by name, None until computed: see `ViewerWorker`."""
        viewer = render_thread()
        assert viewer is not None
        self._refresh()
        return lambda name: self.worker.get(viewer, name, key, self._model.training_step, source)

    # -- building ----------------------------------------------------------------------------------------------------

    def _setup(self, viewer: "Viewer") -> None:
        super()._setup(viewer)
        self._nifi = viewer.log_filename.parent / "nifi"
        gui, model = viewer.viser_server.gui, self._model
        self._list_rates()
        self._restorers = self._list_restorers()
        start = self._start_restorer()
        # between the statistics and the tabs, so that it is visible in all tabs
        with gui.add_folder("NiFi", order=viewer.stats_markdown.order + 0.5):
            self._rate = gui.add_dropdown(
                "Rate",
                tuple(self._rates),
                self._start_rate(),
                visible=model.uncompressed_splats is not None,
                hint="The scene file of this run to render, or the splats before compression",
            )
            self._restore = gui.add_checkbox(
                "Restore",
                model.config.restore_rgb,
                hint="Restore rgb itself. Turn off to compare rgb with rgb_restored in split screen",
            )
            self._restorer = gui.add_dropdown(
                "Restorer", (*self._restorers, NO_RESTORER, OTHER), start, hint="A restorer in the run's nifi folder"
            )
            self._folder = gui.add_text(
                "Folder", str(model.restorer_folder or ""), visible=start == OTHER, hint="Folder of a trained restorer"
            )
            self._strength = gui.add_slider(
                "Strength", 0.0, 1.0, 0.05, 1.0, hint="Share of the restorer's change to apply"
            )
            self._use_photos = gui.add_checkbox(
                "Use photos",
                False,
                disabled=model.train_views is None,
                hint="Correct the view with the capture's photos before it is restored",
            )
            self._show_change = gui.add_checkbox(
                "Show change", False, hint="Tint restored views red where restoration changed them"
            )
            self._status = gui.add_markdown("")
        for element in (self._restore, self._strength, self._use_photos, self._show_change):
            element.on_update(lambda _: self._redraw())
        self._rate.on_update(lambda _: self._choose_rate())
        for element in (self._restorer, self._folder):
            element.on_update(lambda _: self._choose_restorer())
        self._choose_restorer()
        self._set_status(size=self._describe())

    def _list_rates(self) -> None:
        """List the labels to choose from, each with its scene file if it has one."""
        self._found = self._find_rates()
        files, training, compressed = self._found
        splats = self._model.uncompressed_splats
        self._ply_size = 0 if splats is None or training else splats.ply_size
        self._rates: dict[str, Path | None] = {TRAINING: None} if training else {}
        self._rates |= {_label(file, self._ply_size): file for file in sorted(files, key=_size)}
        if compressed or not training:
            self._rates[UNCOMPRESSED] = None

    def _find_rates(self) -> tuple[tuple[Path, ...], bool, bool]:
        """Return the run's scene files, whether it is still training, and whether it has uncompressed splats."""
        files = tuple(sorted(self._nifi.glob("*/scene.nifi")))
        return files, self._model.still_training, self._model.is_compressed

    def _list_restorers(self) -> dict[str, Path]:
        return {file.parent.name: file.parent for file in sorted(self._nifi.glob("*/restorer.json"))}

    def _start_rate(self) -> str:
        """Return the label of what the model itself renders."""
        if self._model.still_training:
            return TRAINING
        file = self._model.scene_file
        same = (label for label, path in self._rates.items() if path and file and path.resolve() == file.resolve())
        return next(same, UNCOMPRESSED)

    def _start_restorer(self) -> str:
        folder = self._model.restorer_folder
        if folder is None:
            return next(iter(self._restorers), NO_RESTORER)
        same = (name for name, path in self._restorers.items() if path.resolve() == folder.resolve())
        return next(same, OTHER)

    def _refresh(self) -> None:
        """Update the lists after scene files or restorers were added or removed, for example when training ends."""
        if self._find_rates() != self._found:
            before, chosen = self._rates.get(self._rate.value), self._rate.value
            self._list_rates()
            self._rate.options = tuple(self._rates)
            # the label of the same file may have changed
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
                self._set_status(size=f"Reading {chosen} …")
                scene = self._model.uncompressed_splats if file is None else _read(file, file.stat().st_mtime_ns)
                scene = None if scene is None else scene.to(self._model.device)
            if chosen == self._rate.value:  # else there is a newer choice
                self._scene = scene
                self._set_status(size=self._describe())
                self._redraw()
        except EXPECTED_ERRORS as error:
            self._set_status(size=_one_line(error))

    def _choose_restorer(self) -> None:
        self._folder.visible = self._restorer.value == OTHER
        folder = self._restorer_folder()
        self._strength.disabled = folder is None
        try:
            trained = self._model.trained_choice(folder)
        except EXPECTED_ERRORS as error:
            self._set_status(time=f"Not restored: {_one_line(error)}")
        else:
            self._use_photos.value = trained.use_photos and self._model.train_views is not None
            self._strength.value = trained.strength
        self.worker.forget()
        self._redraw()

    def _restorer_folder(self) -> Path | None:
        name = self._restorer.value
        if name == OTHER:
            return Path(self._folder.value).expanduser() if self._folder.value.strip() else None
        return self._restorers.get(name)

    def _redraw(self) -> None:
        for machine in list(self.viewer.render_statemachines.values()):
            redraw(machine)

    # -- what the panel shows ----------------------------------------------------------------------------------------

    def _describe(self) -> str:
        file = self._rates.get(self._rate.value)
        if file is not None:
            ratio = f", {self._ply_size / _size(file):.0f}x smaller than the .ply" if self._ply_size else ""
            return f"Size: **{_size(file):,} bytes**{ratio}"
        return f"Size: **{self._ply_size:,} bytes** as a .ply" if self._ply_size else ""

    def _begin(self) -> None:
        self._set_status(time=f"{self._last}, restoring …" if self._last else "Restoring …")

    def _done(self, seconds: float | None) -> None:
        if seconds is not None:
            self._last = f"Last restoration: **{seconds:.2f} s**"
        self._set_status(time=self._last or _NOTHING)

    def _fail(self, error: BaseException) -> None:
        message = f"Not restored: {_one_line(error)}"
        if message != self._status_lines[1] and not isinstance(error, EXPECTED_ERRORS):
            CONSOLE.print_exception()
        self._set_status(time=message)

    def _set_status(self, size: str | None = None, time: str | None = None) -> None:
        self._status_lines = (
            self._status_lines[0] if size is None else size,
            self._status_lines[1] if time is None else time,
        )
        self._status.content = "  \n".join(line for line in self._status_lines if line)


@lru_cache(maxsize=4)
def _read(file: Path, modified: int) -> "Splats":
    from nifi_ns.compress import decode

    del modified  # only part of the cache key: a file that was rewritten is read again
    return decode(file.read_bytes())


def _size(file: Path) -> int:
    return file.stat().st_size


def _label(file: Path, ply_size: int) -> str:
    ratio = f", {ply_size / _size(file):.0f}x" if ply_size else ""
    return f"{file.parent.name} ({format_size(_size(file))}{ratio})"


def _one_line(error: BaseException) -> str:
    """Return the message as inline code, because the viewer would interpret braces and the like as markdown."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"`{text[:300].replace('`', chr(39))}`"
