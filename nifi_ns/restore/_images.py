"""Conversion of images between callers' types (PIL, numpy, torch) and the batches that networks take."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from nifi_ns.errors import NifiError


def to_batch(image: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Return an image as float32 [B, 3, H, W] in [0, 1], and a function that converts such a batch back.

    Args:
        image: a PIL image, or a numpy array or torch tensor of shape [H, W, 3], [B, H, W, 3], [3, H, W] or
            [B, 3, H, W], with uint8 in [0, 255] or floats in [0, 1].

    Raises:
        NifiError: if the type, shape or dtype is not supported.
    """
    if isinstance(image, PILImage.Image):
        batch, restore = to_batch(np.asarray(image.convert("RGB")))
        return batch, lambda result: PILImage.fromarray(restore(result))
    if isinstance(image, np.ndarray):
        batch, restore = to_batch(torch.from_numpy(np.array(image)))
        return batch, lambda result: restore(result).numpy()
    if not isinstance(image, Tensor):
        raise NifiError(f"cannot restore a {type(image).__name__}: expected a PIL image, numpy array or torch tensor")
    channels_last = image.shape[-1] == 3
    if image.ndim not in (3, 4) or not (channels_last or image.shape[-3] == 3) or 0 in image.shape:
        raise NifiError(f"cannot restore an image of shape {tuple(image.shape)}: expected [H, W, 3] or [3, H, W]")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise NifiError(f"cannot restore an image of {image.dtype}: expected uint8 in [0, 255] or floats in [0, 1]")
    batch = image.detach().float() / (255 if image.dtype == torch.uint8 else 1)
    batch = batch[None] if image.ndim == 3 else batch
    batch = batch.movedim(-1, 1) if channels_last else batch

    def back(result: Tensor) -> Tensor:
        result = result.movedim(1, -1) if channels_last else result
        result = result[0] if image.ndim == 3 else result
        if image.dtype == torch.uint8:
            result = (result * 255).round()
        return result.to(image.device, image.dtype).contiguous()

    return batch, back
