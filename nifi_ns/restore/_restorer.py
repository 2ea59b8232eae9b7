"""The restorer: one step of a diffusion backbone with its trained adapter, from a degraded image to a restored one."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nifi_ns.diffusion import NETWORK_ADAPTER_FILE, PROMPT_FILE, VAE_ADAPTER_FILE, Backbone, CompileMode, Prompt
from nifi_ns.errors import NifiError
from nifi_ns.restore._description import (
    RESTORER_FILE,
    VERSION,
    Description,
    Input,
    RestorerSettings,
    checksum,
    packaged_weights,
)
from nifi_ns.restore._difix import T0, Difix, is_difix
from nifi_ns.restore._images import to_batch
from nifi_ns.restore._published import is_published, load_published
from nifi_ns.restore._tiles import feathered, windows

Image = TypeVar("Image")


class Restorer:
    """Restores images with a backbone's adapter phi_minus: any size, from any thread.

    ```python
    restorer = Restorer.from_pretrained("restorer")
    restored = restorer(PIL.Image.open("degraded.png"))
    ```
    """

    tile_size: int = 1024
    """Largest side, in pixels, that is restored at once; larger images go in overlapping, feathered tiles."""
    overlap: int = 64
    """Of tiles, in pixels."""

    def __init__(
        self,
        backbone: Backbone | Callable[[], Backbone],
        settings: RestorerSettings | None = None,
        training: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            backbone: with the adapter phi_minus (without one it restores as the frozen backbone would), or a function
                that loads it, called with the first image.
            settings: default: the paper's.
            training: a summary for restorer.json; anything that JSON can hold.
        """
        self.settings = settings or RestorerSettings()
        self.training = training or {}
        self._source = backbone
        self._lock = threading.RLock()
        self._noise: tuple[tuple[int, ...], Tensor] | None = None

    @staticmethod
    def from_pretrained(
        directory: Path | str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backbone: str | Path | None = None,
        *,
        decoder: str | Path | None = None,
        compile: CompileMode | None = None,
    ) -> "Restorer":
        """A restorer from the folder `save_pretrained` wrote. Its backbone is loaded with the first image.

        Args:
            directory: the folder; or a checkpoint in the layout of the paper's authors (see `published`), which then
                restores as their code does; or a folder or hub id of Difix, such as nvidia/difix_ref.
            device: default: CUDA if there is a GPU, else the CPU.
            dtype: of the frozen weights; see `Backbone.from_pretrained`.
            backbone: where to find the backbone, if not where it was in training.
            decoder: a folder or hub id of an AutoencoderTiny for the backbone, such as madebyollin/taesd3, to decode
                with: faster and less exact.
            compile: compile the networks, in this mode of `torch.compile`, with the first image of each size.

        Raises:
            NifiError: if the folder is missing, incomplete, damaged (CorruptFileError), of another version, or trained
                on another nifi-tiny.
        """
        directory = Path(directory)
        training = {}
        if is_published(directory):
            settings = RestorerSettings(decode="full")
            load = partial(load_published, directory, device, dtype, backbone)
        elif not (directory / RESTORER_FILE).is_file() and is_difix(directory):
            settings = RestorerSettings(T0, noise_scale=0.0, decode="full", attended_photos=1)
            load = partial(Difix.from_pretrained, directory, device, dtype)
        else:
            about = Description.read(directory)
            about.check_backbone(backbone or about.backbone, directory)
            settings, training = about.settings, about.training
            load = partial(_load, directory, about, device, dtype, backbone)

        def load_fast() -> Backbone:
            loaded = load()
            if decoder is not None:
                loaded.use_decoder(decoder)
            if compile is not None:
                loaded.compile(compile)
            return loaded

        return Restorer(load_fast, settings, training)

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded when first asked for.

        Raises:
            NifiError: if it cannot be loaded, or the adapter is for another.
        """
        with self._lock:
            if not isinstance(self._source, Backbone):
                self._source = self._source()
            return self._source

    @property
    def input(self) -> Input:
        """What it was trained on: plain renders ("degraded") or views restored by reference photos ("referenced")."""
        return self.settings.input

    def __call__(self, image: Image, strength: float | None = None, attended_photos: Sequence[Any] = ()) -> Image:
        """The restored image, of the type, shape and value range of `image`.

        Args:
            image: PIL; or numpy or torch, [H, W, 3] or [3, H, W] or a batch of such, uint8 or floats in [0, 1].
            strength: share of the change: 0 is the input exactly, 1 the restoration; default: the settings'.
            attended_photos: photos of other cameras, each as `image` may be, of any size, for all of a batch; for a
                restorer that was trained to look at some (`settings.attended_photos`).

        Raises:
            NifiError: if it is no image, the restorer takes no photos, or the backbone cannot be loaded.
        """
        batch, back = to_batch(image)
        if attended_photos and not self.settings.attended_photos:
            raise NifiError("this restorer was not trained to look at reference photos: leave them away")
        strength = self.settings.strength if strength is None else strength
        if strength == 0:
            return image
        photos = [F.interpolate(to_batch(photo)[0], batch.shape[-2:], mode="area") for photo in attended_photos]
        with self._lock, torch.inference_mode():
            device = self.backbone.device
            seen = torch.stack([p.expand_as(batch) for p in photos], dim=1).to(device) if photos else None
            restored = self._restore(batch.to(device), seen).to(batch.device)
        return back(batch + strength * (restored - batch))

    def _restore(self, batch: Tensor, attended_photos: Tensor | None) -> Tensor:
        """Restored [B, 3, H, W] in [0, 1] of such a batch, on the backbone's device; photos are [B, R, 3, H, W]."""
        (count, _, height, width), multiple = batch.shape, self.backbone.pixel_multiple
        padded = _pad(batch, -height % multiple, -width % multiple)
        if attended_photos is not None:
            attended_photos = _pad(attended_photos.flatten(0, 1), -height % multiple, -width % multiple).unflatten(
                0, (count, -1)
            )

        def tile(part: Tensor, y: int, x: int) -> Tensor:
            seen = (
                None
                if attended_photos is None
                else attended_photos[..., y : y + part.shape[-2], x : x + part.shape[-1]]
            )
            return self._restore_tile(part, noise, y, x, seen)

        limit = min(self.tile_size, self.backbone.max_side or self.tile_size) // multiple * multiple
        overlap = min(self.overlap, limit // 4)
        spans = (windows(side, limit, overlap, multiple) for side in padded.shape[-2:])
        noise = self._noise_like(padded)
        return feathered(padded, tile, *spans)[..., :height, :width].clamp(0, 1)

    def _restore_tile(self, tile: Tensor, noise: Tensor, top: int, left: int, attended_photos: Tensor | None) -> Tensor:
        backbone, settings = self.backbone, self.settings
        y, x, height, width = (length // backbone.downsampling for length in (top, left, *tile.shape[-2:]))
        noise = settings.noise_scale * noise[..., y : y + height, x : x + width]
        restored = backbone.restore(tile, noise, settings.t0, attended_photos)
        # The frozen encoder's latents, not phi_minus's: what that does to these is part of the change.
        return restored if settings.decode == "full" else tile + restored - backbone.decode(backbone.encode(tile))

    def _noise_like(self, padded: Tensor) -> Tensor:
        """Standard normal noise [1, C, h, w] for the latents of `padded`, the same every time."""
        backbone = self.backbone
        shape = (1, backbone.latent_channels, *(side // backbone.downsampling for side in padded.shape[-2:]))
        if self._noise is None or self._noise[0] != shape:
            generator = torch.Generator().manual_seed(self.settings.seed)
            self._noise = shape, torch.randn(shape, generator=generator).to(backbone.device)
        return self._noise[1]

    def save_pretrained(self, directory: Path | str) -> None:
        """Write the adapter, the prompt and restorer.json; other files in `directory` are left alone.

        Each file is replaced as a whole, restorer.json last and with the others' checksums, so that a folder whose
        writing was cut short is recognized.
        """
        directory = Path(directory)
        self.backbone.save_adapter(directory, "phi_minus")
        self.backbone.prompt.save(directory / PROMPT_FILE)
        files = [n for n in (NETWORK_ADAPTER_FILE, VAE_ADAPTER_FILE, PROMPT_FILE) if (directory / n).is_file()]
        Description(
            version=VERSION,
            backbone=self.backbone.name,
            family=self.backbone.family.name,
            prompt=self.backbone.prompt.text,
            settings=self.settings,
            training=self.training,
            files={name: checksum(directory / name) for name in files},
            weights=packaged_weights(self.backbone.name),
        ).write(directory)


def _load(
    directory: Path,
    about: Description,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    backbone: str | Path | None,
) -> Backbone:
    """The backbone that restorer.json names, or the one given, with the adapter and the prompt in `directory`."""
    prompt = Prompt.load(directory / PROMPT_FILE)
    loaded = Backbone.from_pretrained(backbone or about.backbone, device, dtype, prompt)
    if loaded.family.name != about.family:
        raise NifiError(
            f"{directory} is for {about.backbone} ({about.family}), not {loaded.name} ({loaded.family.name})"
        )
    loaded.load_adapter(directory, "phi_minus")
    return loaded


def _pad(batch: Tensor, bottom: int, right: int) -> Tensor:
    """[B, 3, H, W] reflected at the lower and right edge; by repetition where the image is too small to reflect."""
    mode = "reflect" if bottom < batch.shape[-2] and right < batch.shape[-1] else "replicate"
    return F.pad(batch, (0, right, 0, bottom), mode=mode)
