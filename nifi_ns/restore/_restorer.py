"""The restorer: restores a degraded image in one step of a diffusion backbone with a trained adapter."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nifi_ns.diffusion import NETWORK_ADAPTER_FILE, PROMPT_FILE, VAE_ADAPTER_FILE, Backbone, CompileMode
from nifi_ns.errors import NifiError
from nifi_ns.pairs import Input
from nifi_ns.restore._description import VERSION, Description, RestorerSettings, checksum, packaged_weights
from nifi_ns.restore._images import to_batch
from nifi_ns.restore._layouts import Options, find_restorer
from nifi_ns.restore._network import Deferred, OneStepNetwork
from nifi_ns.restore._tiles import feathered, windows

Image = TypeVar("Image")


class Restorer:
    """Restores images of any size with a network, usually a backbone with the adapter phi_minus. Thread-safe.

    ```python
    restorer = Restorer.from_pretrained("restorer")
    restored = restorer(PIL.Image.open("degraded.png"))
    ```
    """

    tile_size: int = 1024
    """Largest side in pixels that is restored at once. Larger images are split into overlapping, feathered tiles."""
    overlap: int = 64
    """Overlap of tiles in pixels."""

    def __init__(
        self,
        network: OneStepNetwork | Deferred,
        settings: RestorerSettings | None = None,
        training: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            network: usually a `Backbone` with the adapter phi_minus; without the adapter, the frozen backbone restores.
            settings: default: the paper's.
            training: a summary of the training for restorer.json, as JSON values.
        """
        self.settings = settings or RestorerSettings()
        self.training = training or {}
        self._network = network
        self._lock = threading.RLock()
        self._noise: tuple[tuple[int, ...], Tensor] | None = None  # the last noise, with its shape and seed as key

    @staticmethod
    def from_pretrained(
        path: Path | str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backbone: str | Path | None = None,
        *,
        decoder: str | Path | None = None,
        compile: CompileMode | None = None,
    ) -> "Restorer":
        """Find a restorer. Its network is loaded with the first image.

        ```python
        Restorer.from_pretrained("restorer")  # a folder written by ns-nifi-train or save_pretrained
        Restorer.from_pretrained("3dgs-sd3-restorer-t=199.ckpt")  # the paper's checkpoint, needs SD3
        Restorer.from_pretrained("nvidia/difix_ref")  # Difix, from the hub or a folder
        ```

        Args:
            path: a file or folder, or else a hub id. Folders in TSD-SR's layout work too. A restorer that this package
                did not write keeps the settings of its authors' code.
            device: default: CUDA if there is a GPU, else the CPU.
            dtype: dtype of the frozen weights; see `Backbone.from_pretrained`.
            backbone: path or hub id of the backbone; default: the one used in training.
            decoder: folder or hub id of an AutoencoderTiny for the backbone, such as madebyollin/taesd3, which decodes
                faster and less accurately.
            compile: mode of `torch.compile`; the network is compiled with the first image of each size.

        Raises:
            NifiError: if there is no restorer, it is incomplete, has another version or was trained on another
                nifi-tiny, or the hub cannot be reached.
            CorruptFileError: if it is damaged.
        """
        found = find_restorer(Path(path).expanduser(), Options(device, dtype, backbone, decoder))

        def load() -> OneStepNetwork:
            network = found.load()
            if compile is not None:
                network.compile(compile)
            return network

        return Restorer(Deferred(load), found.settings, found.training)

    @property
    def network(self) -> OneStepNetwork:
        """The network, loaded on first use.

        Raises:
            NifiError: if it cannot be loaded, or the adapter is for another backbone.
        """
        with self._lock:
            if isinstance(self._network, Deferred):
                self._network = self._network.load()
            return self._network

    @property
    def backbone(self) -> Backbone:
        """The network, if it is a backbone with adapters.

        Raises:
            NifiError: if it is another kind of network, such as Difix, or cannot be loaded.
        """
        network = self.network
        if not isinstance(network, Backbone):
            raise NifiError(
                f"{type(network).__name__} has no adapters: only a backbone with adapters can be trained and saved"
            )
        return network

    def load(self) -> "Restorer":
        """Load the network now instead of with the first image.

        Raises:
            NifiError: if it cannot be loaded, or the adapter is for another backbone.
        """
        _ = self.network
        return self

    @property
    def input(self) -> Input:
        """Training input: plain renders ("degraded") or renders corrected with reference photos ("referenced")."""
        return self.settings.input

    def __call__(self, image: Image, strength: float | None = None, attended_photos: Sequence[Any] = ()) -> Image:
        """Restore an image. The result has the type, shape and value range of `image`.

        Args:
            image: a PIL image, or a numpy array or torch tensor [H, W, 3], [3, H, W] or a batch of those, uint8 or
                floats in [0, 1].
            strength: 0 returns exactly the input, 1 the full restoration; default: the settings' strength.
            attended_photos: photos of other cameras, of any type that `image` may have and any size, shared by the
                whole batch. The restorer must have been trained with some (`settings.attended_photos`).

        Raises:
            NifiError: if it is not an image, the restorer takes no photos, or the network cannot be loaded.
        """
        batch, back = to_batch(image)
        if attended_photos and not self.settings.attended_photos:
            raise NifiError("this restorer was not trained with attended photos: give none")
        strength = self.settings.strength if strength is None else strength
        if strength == 0:
            return image
        photos = [F.interpolate(to_batch(photo)[0], batch.shape[-2:], mode="area") for photo in attended_photos]
        with self._lock, torch.inference_mode():
            device = self.network.device
            seen = torch.stack([p.expand_as(batch) for p in photos], dim=1).to(device) if photos else None
            restored = self._restore(batch.to(device), seen).to(batch.device)
        return back(batch + strength * (restored - batch))

    def _restore(self, batch: Tensor, attended_photos: Tensor | None) -> Tensor:
        """Restore [B, 3, H, W] in [0, 1] on the network's device. Photos are [B, R, 3, H, W]."""
        (count, _, height, width), multiple = batch.shape, self.network.pixel_multiple
        bottom, right = -height % multiple, -width % multiple
        padded = _pad(batch, bottom, right)
        noise = self._noise_like(padded)
        photos = None
        if attended_photos is not None:
            photos = _pad(attended_photos.flatten(0, 1), bottom, right).unflatten(0, (count, -1))

        def restore_at(tile: Tensor, top: int, left: int) -> Tensor:
            here = (..., slice(top, top + tile.shape[-2]), slice(left, left + tile.shape[-1]))
            return self._restore_tile(tile, noise, top, left, None if photos is None else photos[here])

        limit = min(self.tile_size, self.network.max_side or self.tile_size) // multiple * multiple
        overlap = min(self.overlap, limit // 4)
        rows, columns = (windows(side, limit, overlap, multiple) for side in padded.shape[-2:])
        return feathered(padded, restore_at, rows, columns)[..., :height, :width].clamp(0, 1)

    def _restore_tile(self, tile: Tensor, noise: Tensor, top: int, left: int, attended_photos: Tensor | None) -> Tensor:
        """Restore a tile [B, 3, H, W] with its part of the whole image's noise."""
        network, settings = self.network, self.settings
        y, x, height, width = (length // network.downsampling for length in (top, left, *tile.shape[-2:]))
        noise = settings.noise_scale * noise[..., y : y + height, x : x + width]
        restored = network.restore(tile, noise, settings.t0, attended_photos)
        # autoencode uses the frozen encoder: phi_minus's change of the latents is part of the restoration
        return restored if settings.decode == "full" else tile + restored - network.autoencode(tile)

    def _noise_like(self, padded: Tensor) -> Tensor:
        """Return standard normal noise [1, C, h, w] for the latents of `padded`, the same for every call."""
        network = self.network
        shape = (1, network.latent_channels, *(side // network.downsampling for side in padded.shape[-2:]))
        key = (*shape, self.settings.seed)
        if self._noise is None or self._noise[0] != key:
            generator = torch.Generator().manual_seed(self.settings.seed)
            self._noise = key, torch.randn(shape, generator=generator).to(network.device)
        return self._noise[1]

    def save_pretrained(self, directory: Path | str) -> None:
        """Write the adapter, the prompt and restorer.json to `directory`. Other files there do not change.

        Each file is written atomically, restorer.json last with the checksums of the others, so that an interrupted
        write is detected on reading.

        Raises:
            NifiError: if the network is not a backbone with adapters.
        """
        directory = Path(directory)
        backbone = self.backbone
        backbone.save_adapter(directory, "phi_minus")
        backbone.prompt.save(directory / PROMPT_FILE)
        files = [n for n in (NETWORK_ADAPTER_FILE, VAE_ADAPTER_FILE, PROMPT_FILE) if (directory / n).is_file()]
        Description(
            version=VERSION,
            backbone=backbone.name,
            family=backbone.family.name,
            prompt=backbone.prompt.text,
            settings=self.settings,
            training=self.training,
            files={name: checksum(directory / name) for name in files},
            weights=packaged_weights(backbone.name),
        ).write(directory)


def _pad(batch: Tensor, bottom: int, right: int) -> Tensor:
    """Pad [B, 3, H, W] at the bottom and right by reflection, or by repetition if it is too small to reflect."""
    mode = "reflect" if bottom < batch.shape[-2] and right < batch.shape[-1] else "replicate"
    return F.pad(batch, (0, right, 0, bottom), mode=mode)
