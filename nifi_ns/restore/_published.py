"""Checkpoints of the paper's authors, and of TSD-SR: LoRA weights of SD3's `transformer` and `vae`.

The paper's (github.com/ceteke/nifi) are one file by `torch.save` with both models' state dicts by name, such as
`3dgs-sd3-restorer-t=199.ckpt`; TSD-SR's (github.com/Microtreei/TSD-SR) a folder with `transformer.safetensors` and
`vae.safetensors`. Alpha equals the rank: 64 in the paper's.

A checkpoint restores here nearly as it does with the authors' code, which differs in this:

- its latent is a sample of the encoder's posterior; here it is the mode, so that a view is restored the same each time;
- its noise is new for every image; here it is the same for all of one size, so that frames do not flicker;
- its step ends at the schedule's sigma at t = 0, which is 0.003 for SD3; here at 0, the estimate of the clean latent;
- it tells the network timestep 199; here the nearest of the schedule's, 197.9, which is where the noise level is from;
- it pads an image to 8 pixels and then the latent to 2; here the image is padded to 16, by reflection;
- it restores an image of any size at once; here in tiles where a side is longer than `Restorer.tile_size`.
"""

import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nifi_ns.diffusion import Backbone, Embeddings, Prompt
from nifi_ns.errors import CorruptFileError
from nifi_ns.restore._description import RestorerSettings

BACKBONE = "stabilityai/stable-diffusion-3-medium-diffusers"
EMBEDDINGS_FILE = "default_embeddings.npz"
PROMPT = (
    "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed photo - realistic "
    "maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, skin pore detailing, hyper sharpness, "
    "perfect without deformations."
)
PUBLISHED_SETTINGS = RestorerSettings(t0=199, noise_scale=1.0, decode="full")
"""What the paper's code and TSD-SR's do."""
_PARTS = ("transformer", "vae")


def is_checkpoint(path: Path) -> bool:
    """Return whether `path` is a file, as the paper's checkpoints are."""
    return path.is_file()


def is_tsd_sr(path: Path) -> bool:
    """Return whether `path` is a folder of TSD-SR's layout."""
    return all((path / f"{part}.safetensors").is_file() for part in _PARTS)


@dataclass(frozen=True)
class Published:
    """A checkpoint that was read, and what is needed beside it."""

    path: Path
    adapter: dict[str, Tensor]
    """LoRA tensors under diffusers' keys."""
    prompt: Prompt | str
    """The authors' embeddings, or else their text, which the backbone's text encoders embed."""

    @staticmethod
    def read(path: Path) -> "Published":
        """Read a checkpoint.

        The prompt is that of `default_embeddings.npz`, as the authors' code writes it, beside the checkpoint or in the
        `example/` beside its folder, as in the authors' repository; else their text.

        Raises:
            CorruptFileError: if one of the files is damaged or of another layout.
        """
        folder = path if path.is_dir() else path.parent
        files = (folder / EMBEDDINGS_FILE, folder.resolve().parent / "example" / EMBEDDINGS_FILE)
        prompt = next((_read_embeddings(file) for file in files if file.is_file()), PROMPT)
        return Published(path, read_lora_tensors(path), prompt)

    def load(
        self, device: torch.device | str | None, dtype: torch.dtype | None, backbone: str | Path | None
    ) -> Backbone:
        """Load SD3, or the `backbone` given, with the checkpoint as phi_minus.

        Raises:
            NifiError: if the backbone cannot be loaded, or the checkpoint is for another.
        """
        loaded = Backbone.from_pretrained(backbone or BACKBONE, device, dtype, self.prompt)
        loaded.add_adapter("phi_minus", self.adapter, str(self.path))
        return loaded


def read_lora_tensors(path: Path) -> dict[str, Tensor]:
    """Return the LoRA tensors of both models under diffusers' keys (`transformer.`, `vae.`).

    The frozen weights, gigabytes that a checkpoint may hold beside them, are not read.

    Raises:
        CorruptFileError: if it is damaged or of another layout.
    """
    try:
        if path.is_dir():
            states: Any = {part: load_file(path / f"{part}.safetensors") for part in _PARTS}
        else:
            states = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        tensors = {}
        for part in _PARTS:
            for key, value in states[part].items():
                # A state dict's key is layer.lora_A.default.weight. TSD-SR's vae.safetensors says "transformer." too.
                if match := re.fullmatch(r"(?:(?:transformer|vae)\.)?(.+\.lora_[AB])(?:\.\w+)?\.weight", key):
                    tensors[f"{part}.{match[1]}.weight"] = value
    except (RuntimeError, OSError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise CorruptFileError(f"{path} is no checkpoint that can be read: {str(error).splitlines()[0]}") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise CorruptFileError(f"{path} is of another layout: expected state dicts of transformer and vae") from error
    return tensors


def _read_embeddings(path: Path) -> Prompt:
    """Return the authors' embeddings of the prompt, with zeros for the null prompt, which restoring does not need."""
    try:
        with np.load(path) as arrays:
            positive = Embeddings(*(torch.from_numpy(arrays[k]) for k in ("prompt_embeds", "pooled_prompt_embeds")))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CorruptFileError(f"{path} holds no prompt embeddings: {error}") from error
    assert positive.pooled is not None
    return Prompt(PROMPT, positive, Embeddings(torch.zeros_like(positive.tokens), torch.zeros_like(positive.pooled)))
