"""Generations of restored views for training, stored in the run's folder.

`<run>/nifi/distill/step_<step>/` contains one file per view in `pred/` (the render), `ref/` (the photo that shows most
of the view), `fixed/` (the restored view, used for training) and `weight/` (the weight of each pixel), and
`cameras.json`, which is written last.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nifi_ns.errors import CorruptFileError
from nifi_ns.files import write_text
from nifi_ns.media import read_picture, write_picture
from nifi_ns.views import View

CAMERAS_FILE = "cameras.json"


@dataclass(frozen=True)
class RestoredView:
    """A restored view at a camera without a photo. Pictures [H, W, 3] and weights [H, W, 1] are uint8, on the CPU."""

    view: View
    pred: Tensor
    """The render."""
    ref: Tensor
    """A photo that shows much of the view, of any size."""
    fixed: Tensor
    """The restored view."""
    weights: Tensor
    """Weight of each pixel in the loss, 0 to 255."""

    @staticmethod
    def of(view: View, *pictures: Tensor) -> "RestoredView":
        """Build from `pred`, `ref`, `fixed` and `weights` in [0, 1]."""
        return RestoredView(
            view.to("cpu"), *((p.detach().float().clamp(0, 1) * 255).round().byte().cpu() for p in pictures)
        )


@dataclass(frozen=True)
class Generation:
    """The views restored at one training step."""

    step: int
    views: Sequence[RestoredView]

    def save(self, run: Path) -> Path:
        """Write into a run's folder, replacing the files of an earlier training. Return the folder."""
        folder = _folder(run, self.step)
        if folder.is_dir():
            shutil.rmtree(folder)
        cameras = []
        for restored in self.views:
            view = restored.view
            for kind in ("pred", "ref", "fixed"):
                write_picture(folder / kind / f"{view.name}.png", getattr(restored, kind).numpy())
            write_picture(folder / "weight" / f"{view.name}.png", restored.weights.expand(-1, -1, 3).numpy())
            camera = {"viewmat": view.viewmat.tolist(), "K": view.K.tolist()}
            cameras.append({"name": view.name, "width": view.width, "height": view.height, **camera})
        write_text(folder / CAMERAS_FILE, json.dumps({"step": self.step, "cameras": cameras}, indent=1) + "\n")
        return folder

    @staticmethod
    def find(runs: Sequence[Path], step: int) -> "Generation | None":
        """Return the generation of a step from the first run folder that contains it completely; None if none does.

        Raises:
            CorruptFileError: if it is damaged.
        """
        folder = next((f for run in runs if ((f := _folder(run, step)) / CAMERAS_FILE).is_file()), None)
        if folder is None:
            return None
        try:
            cameras = json.loads((folder / CAMERAS_FILE).read_text())["cameras"]
            views = [_view(camera) for camera in cameras]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(f"{folder / CAMERAS_FILE} is damaged: {error!r}") from error
        return Generation(step, [_read(folder, view) for view in views])


def _folder(run: Path, step: int) -> Path:
    return run / "nifi" / "distill" / f"step_{step}"


def _view(camera: dict[str, Any]) -> View:
    viewmat, K = torch.tensor(camera["viewmat"]), torch.tensor(camera["K"])
    return View(camera["name"], viewmat, K, camera["width"], camera["height"])


def _read(folder: Path, view: View) -> RestoredView:
    pictures = (torch.tensor(read_picture(folder / k / f"{view.name}.png")) for k in ("pred", "ref", "fixed", "weight"))
    pred, ref, fixed, weights = pictures
    return RestoredView(view, pred, ref, fixed, weights[..., :1])
