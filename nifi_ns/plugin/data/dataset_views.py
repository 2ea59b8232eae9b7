"""Conversion of nerfstudio's cameras and datasets to views."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from nerfstudio.cameras.camera_paths import get_path_from_json
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager
from torch import Tensor

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.views import View, view_names

# nerfstudio's cameras look along -z with y up (OpenGL); ours along +z with y down (OpenCV)
_FLIP = torch.tensor([1.0, -1.0, -1.0])


def view_of(camera: Cameras, name: str = "", image: Tensor | None = None) -> View:
    """Convert a nerfstudio camera of shape [] or [1] to a view on the camera's device."""
    camera = camera.reshape((1,))
    c2w = camera.camera_to_worlds[0]
    rotation = (c2w[:3, :3] * _FLIP.to(c2w)).T
    viewmat = torch.eye(4, dtype=c2w.dtype, device=c2w.device)
    viewmat[:3, :3] = rotation
    viewmat[:3, 3] = -rotation @ c2w[:3, 3]
    K = camera.get_intrinsics_matrices()[0].to(c2w)
    return View(name, viewmat, K, int(camera.width.item()), int(camera.height.item()), image)


def camera_of(view: View) -> Cameras:
    """Convert a view to a nerfstudio camera of shape [1]: the inverse of `view_of`."""
    rotation = view.viewmat[:3, :3].T * _FLIP.to(view.viewmat)
    c2w = torch.cat([rotation, view.centre[:, None]], dim=1)
    fx, fy, cx, cy = (view.K[at].reshape(1, 1) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return Cameras(c2w[None], fx, fy, cx, cy, width=view.width, height=view.height)


class DatasetViews(Sequence[View]):
    """The views of one split of a datamanager, undistorted like its training images.

    Photos stay in the datamanager's cache in its own dtype (uint8 for splatfacto). Each access makes one float copy.
    Use `cameras` if photos are not needed.
    """

    def __init__(self, datamanager: FullImageDatamanager, split: Literal["train", "eval"]) -> None:
        self._datamanager = datamanager
        self._split = split
        dataset = datamanager.train_dataset if split == "train" else datamanager.eval_dataset
        self.names = view_names([Path(file) for file in dataset.image_filenames])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> View:  # pyright: ignore[reportIncompatibleMethodOverride]
        cache, cameras = self._read()
        image = cache[index]["image"]
        if image.dtype == torch.uint8:
            image = image.float() / 255
        if image.shape[-1] == 4:
            image = image[..., :3] * image[..., 3:]  # black where transparent, like empty parts of the splats
        device = torch.device(self._datamanager.device)
        return view_of(cameras[index].to(device), self.names[index], image.to(device))

    @cached_property
    def cameras(self) -> list[View]:
        """The views without their photos."""
        _, cameras = self._read()
        cameras = cameras.to(torch.device(self._datamanager.device))
        return [view_of(cameras[index], name) for index, name in enumerate(self.names)]

    def _read(self) -> tuple[list[dict[str, Tensor]], Cameras]:
        manager = self._datamanager
        # read the cache first: filling it undistorts the photos and corrects the dataset's cameras
        cache = manager.cached_train if self._split == "train" else manager.cached_eval
        dataset = manager.train_dataset if self._split == "train" else manager.eval_dataset
        return cache, dataset.cameras


def read_camera_path(path: Path) -> list[View]:
    """Read the cameras of a path saved by nerfstudio's viewer.

    Raises:
        NifiError: if there is no such file, or it is not a camera path (CorruptFileError).
    """
    if not path.is_file():
        raise NifiError(f"no camera path {path}: save one in the viewer's Render tab")
    try:
        cameras = get_path_from_json(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CorruptFileError(f"{path} is not a camera path of nerfstudio's viewer: {error!r}") from error
    return [view_of(cameras[i], f"{path.stem}_{i:04d}") for i in range(len(cameras))]
