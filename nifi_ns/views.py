"""Views: cameras and photos as all packages exchange them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Split = Literal["train", "test"]


@dataclass(frozen=True)
class View:
    """A pinhole camera, with the photo taken from it if there is one."""

    name: str
    viewmat: Tensor
    """[4, 4] world to camera, OpenCV axes (x right, y down, z forward)."""
    K: Tensor
    """[3, 3] intrinsics in pixels; the centre of the top left pixel is at (0.5, 0.5)."""
    width: int
    height: int
    image: Tensor | None = None
    """The photo, [height, width, 3] in [0, 1]."""

    @property
    def centre(self) -> Tensor:
        """Position of the camera in world coordinates, [3]."""
        return -self.viewmat[:3, :3].T @ self.viewmat[:3, 3]

    def to(self, device: torch.device | str) -> "View":
        """Move the tensors to `device`."""
        image = None if self.image is None else self.image.to(device)
        return View(self.name, self.viewmat.to(device), self.K.to(device), self.width, self.height, image)


def view_names(files: Sequence[Path]) -> list[str]:
    """Return a unique name for each file: the stem, prefixed with its folders if stems repeat."""
    stems = [file.stem for file in files]
    if len(set(stems)) == len(stems):
        return stems
    names = ["_".join(file.with_suffix("").parts[1:]) for file in files]
    return names if len(set(names)) == len(names) else [f"{i:05d}_{stem}" for i, stem in enumerate(stems)]


def evenly_spaced(count: int, total: int) -> list[int]:
    """Return `count` evenly spaced indices, from the first to the last of `total`; all if `count` is larger."""
    if count >= total:
        return list(range(total))
    return [round(i * (total - 1) / max(1, count - 1)) for i in range(count)]


def spaced_views(views: Sequence[View], count: int) -> list[View]:
    """Return `count` of the views, `evenly_spaced`."""
    return [views[i] for i in evenly_spaced(count, len(views))]
