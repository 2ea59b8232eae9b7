"""Checkpoints of the paper's authors and of TSD-SR: LoRA weights of SD3's `transformer` and `vae`.

The paper's (github.com/ceteke/nifi) are files written by `torch.save` with the state dicts of both models by name, such
as `3dgs-sd3-restorer-t=199.ckpt`. TSD-SR's (github.com/Microtreei/TSD-SR) are folders with `transformer.safetensors`
and `vae.safetensors`. Alpha equals the rank, which is 64 in the paper.

Results are close to those of the authors' code, with these differences:

- the authors sample the latent from the encoder's posterior; here it is the mode, so that results are repeatable;
- the authors draw new noise for every image; here all images of one size share it, so that frames do not flicker;
- the authors' step ends at the schedule's sigma at t = 0, 0.003 for SD3; here at 0, the estimate of the clean latent;
- the authors pass timestep 199 to the network; here it is the schedule's nearest, 197.9, which sets the noise level;
- the authors pad an image to 8 pixels and then the latent to 2; here the image is padded to 16 by reflection;
- the authors restore an image of any size at once; here sides longer than `Restorer.tile_size` are split into tiles.
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
"""The settings of the paper's and TSD-SR's code."""
_PARTS = ("transformer", "vae")


def is_checkpoint(path: Path) -> bool:
    """Return whether `path` is a file. The paper's checkpoints are files."""
    return path.is_file()


def is_tsd_sr(path: Path) -> bool:
    """Return whether `path` is a folder in TSD-SR's layout."""
    return all((path / f"{part}.safetensors").is_file() for part in _PARTS)


@dataclass(frozen=True)
class Published:
    """A published checkpoint and its prompt."""

    path: Path
    adapter: dict[str, Tensor]
    """LoRA tensors by diffusers' keys."""
    prompt: Prompt | str
    """The authors' embeddings, or else their text for the backbone's text encoders."""

    @staticmethod
    def read(path: Path) -> "Published":
        """Read a checkpoint.

        The prompt embeddings are read from `default_embeddings.npz`, as written by the authors' code, beside the
        checkpoint or in an `example/` beside its folder. Without that file the prompt is the authors' text.

        Raises:
            CorruptFileError: if a file is damaged or has another layout.
        """
        folder = path if path.is_dir() else path.parent
        files = (folder / EMBEDDINGS_FILE, folder.resolve().parent / "example" / EMBEDDINGS_FILE)
        prompt = next((_read_embeddings(file) for file in files if file.is_file()), PROMPT)
        return Published(path, read_lora_tensors(path), prompt)

    def load(
        self, device: torch.device | str | None, dtype: torch.dtype | None, backbone: str | Path | None
    ) -> Backbone:
        """Load SD3 or the given `backbone`, with the checkpoint as phi_minus.

        Raises:
            NifiError: if the backbone cannot be loaded or does not match the checkpoint.
        """
        loaded = Backbone.from_pretrained(backbone or BACKBONE, device, dtype, self.prompt)
        loaded.add_adapter("phi_minus", self.adapter, str(self.path))
        return loaded


def read_lora_tensors(path: Path) -> dict[str, Tensor]:
    """Return the LoRA tensors of both models by diffusers' keys (`transformer.`, `vae.`).

    Frozen weights in the checkpoint, which may be gigabytes, are not read.

    Raises:
        CorruptFileError: if it is damaged or has another layout.
    """
    try:
        if path.is_dir():
            states: Any = {part: load_file(path / f"{part}.safetensors") for part in _PARTS}
        else:
            states = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        tensors = {}
        for part in _PARTS:
            for key, value in states[part].items():
                # A state dict's key is layer.lora_A.default.weight. TSD-SR's vae.safetensors also has "transformer.".
                if match := re.fullmatch(r"(?:(?:transformer|vae)\.)?(.+\.lora_[AB])(?:\.\w+)?\.weight", key):
                    tensors[f"{part}.{match[1]}.weight"] = value
    except (RuntimeError, OSError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise CorruptFileError(f"{path} is not a readable checkpoint: {str(error).splitlines()[0]}") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise CorruptFileError(f"{path} has another layout: expected state dicts of transformer and vae") from error
    return tensors


def _read_embeddings(path: Path) -> Prompt:
    """Return the authors' prompt embeddings, with zeros for the null prompt, which restoring does not use."""
    try:
        with np.load(path) as arrays:
            positive = Embeddings(*(torch.from_numpy(arrays[k]) for k in ("prompt_embeds", "pooled_prompt_embeds")))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CorruptFileError(f"{path} does not hold prompt embeddings: {error}") from error
    assert positive.pooled is not None
    return Prompt(PROMPT, positive, Embeddings(torch.zeros_like(positive.tokens), torch.zeros_like(positive.pooled)))
