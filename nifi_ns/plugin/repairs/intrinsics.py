"""Splatfacto always moves the camera's intrinsics to CUDA, which fails without a GPU.

Not reported upstream, because on a CPU splatfacto fails earlier, in the rasterizer (`rasterization`).
"""

import copy
from typing import Any

from nerfstudio.cameras.cameras import Cameras
from torch import Tensor


class _StaysOnDevice(Tensor):
    """A tensor that ignores `cuda()`."""

    def cuda(self, *_: Any, **__: Any) -> Tensor:
        return self.as_subclass(Tensor)


def on_own_device(camera: Cameras) -> Cameras:
    """Return a copy of `camera` whose intrinsics stay on its device when `.cuda()` is called on them."""
    camera = copy.copy(camera)

    def intrinsics() -> Tensor:
        return Cameras.get_intrinsics_matrices(camera).as_subclass(_StaysOnDevice)

    object.__setattr__(camera, "get_intrinsics_matrices", intrinsics)
    return camera
