"""Generations of repaired views, as a run's folder keeps them to be looked at and found again.

`<run>/nifi/fix/step_<step>/` holds, by the name of the view, `pred/` (what the model showed), `ref/` (the photo that
sees most of it), `fixed/` (the repair, which is trained on), `weight/` (how much each of its pixels is believed), and,
written last, `cameras.json`.
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
class Repair:
    """A view that no photo shows, repaired; pictures [H, W, 3] and weights [H, W, 1] are uint8, on the CPU."""

    view: View
    pred: Tensor
    """What the model showed."""
    ref: Tensor
    """A photo that sees much of it, of any size."""
    fixed: Tensor
    """The repair."""
    weights: Tensor
    """How much each pixel of the repair is believed, up to 255."""

    @staticmethod
    def of(view: View, *pictures: Tensor) -> "Repair":
        """Of `pred`, `ref`, `fixed` and `weights` in [0, 1]."""
        return Repair(view.to("cpu"), *((p.detach().float().clamp(0, 1) * 255).round().byte().cpu() for p in pictures))


@dataclass(frozen=True)
class Generation:
    """The views that were repaired at one step of training."""

    step: int
    repairs: Sequence[Repair]

    def save(self, run: Path) -> Path:
        """Write into the folder of a run, in place of what an earlier training left there. Returns the folder."""
        folder = _folder(run, self.step)
        if folder.is_dir():
            shutil.rmtree(folder)
        cameras = []
        for repair in self.repairs:
            view = repair.view
            for kind in ("pred", "ref", "fixed"):
                write_picture(folder / kind / f"{view.name}.png", getattr(repair, kind).numpy())
            write_picture(folder / "weight" / f"{view.name}.png", repair.weights.expand(-1, -1, 3).numpy())
            camera = {"viewmat": view.viewmat.tolist(), "K": view.K.tolist()}
            cameras.append({"name": view.name, "width": view.width, "height": view.height, **camera})
        write_text(folder / CAMERAS_FILE, json.dumps({"step": self.step, "cameras": cameras}, indent=1) + "\n")
        return folder

    @staticmethod
    def find(runs: Sequence[Path], step: int) -> "Generation | None":
        """That of a step, in the first of the folders of runs that holds it whole.

        Raises:
            CorruptFileError: if it has been damaged.
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
    return run / "nifi" / "fix" / f"step_{step}"


def _view(camera: dict[str, Any]) -> View:
    viewmat, K = torch.tensor(camera["viewmat"]), torch.tensor(camera["K"])
    return View(camera["name"], viewmat, K, camera["width"], camera["height"])


def _read(folder: Path, view: View) -> Repair:
    pictures = (torch.tensor(read_picture(folder / k / f"{view.name}.png")) for k in ("pred", "ref", "fixed", "weight"))
    pred, ref, fixed, weights = pictures
    return Repair(view, pred, ref, fixed, weights[..., :1])
