"""Checkpoints in the layouts of the paper's authors and of TSD-SR: LoRA weights of SD3's `transformer` and `vae`.

Either one file by `torch.save` that holds both models' state dicts by name (github.com/ceteke/nifi), or a folder with
`transformer.safetensors` and `vae.safetensors` (github.com/Microtreei/TSD-SR).
"""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nifi_ns.diffusion import Backbone, Embeddings, Prompt
from nifi_ns.errors import CorruptFileError

BACKBONE = "stabilityai/stable-diffusion-3-medium-diffusers"
EMBEDDINGS_FILE = "default_embeddings.npz"
PROMPT = (
    "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed photo - realistic "
    "maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, skin pore detailing, hyper sharpness, "
    "perfect without deformations."
)
_PARTS = ("transformer", "vae")


def is_published(path: Path) -> bool:
    """Whether `path` is a file, or a folder of TSD-SR's layout."""
    return path.is_file() or all((path / f"{part}.safetensors").is_file() for part in _PARTS)


def load_published(
    path: Path, device: torch.device | str | None, dtype: torch.dtype | None, backbone: str | Path | None
) -> Backbone:
    """SD3, or the `backbone` given, with the checkpoint at `path` as phi_minus.

    The prompt is that of `default_embeddings.npz` beside the checkpoint, as the authors' code writes it, or else their
    text, embedded by the backbone's text encoders.

    Raises:
        NifiError: if the backbone cannot be loaded, or the checkpoint is damaged (CorruptFileError) or for another.
    """
    adapter = read_published(path)
    embeddings = (path if path.is_dir() else path.parent) / EMBEDDINGS_FILE
    prompt = _read_embeddings(embeddings) if embeddings.is_file() else PROMPT
    loaded = Backbone.from_pretrained(backbone or BACKBONE, device, dtype, prompt)
    loaded.add_adapter("phi_minus", adapter, str(path))
    return loaded


def read_published(path: Path) -> dict[str, Tensor]:
    """The LoRA tensors of both models under diffusers' keys (`transformer.`, `vae.`), without the frozen weights.

    Raises:
        CorruptFileError: if it is damaged or of another layout.
    """
    try:
        if path.is_dir():
            states: Any = {part: load_file(path / f"{part}.safetensors") for part in _PARTS}
        else:
            states = torch.load(path, map_location="cpu", weights_only=True)
        tensors = {}
        for part in _PARTS:
            for key, value in states[part].items():
                # Of a state dict, layer.lora_A.default.weight. TSD-SR's vae.safetensors says "transformer." too.
                if match := re.fullmatch(r"(?:(?:transformer|vae)\.)?(.+\.lora_[AB])(?:\.\w+)?\.weight", key):
                    tensors[f"{part}.{match[1]}.weight"] = value
    except (RuntimeError, OSError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise CorruptFileError(f"{path} is no checkpoint that can be read: {str(error).splitlines()[0]}") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise CorruptFileError(f"{path} is of another layout: expected state dicts of transformer and vae") from error
    return tensors


def _read_embeddings(path: Path) -> Prompt:
    """The authors' embeddings of the prompt; of the null prompt, which restoring needs not, zeros."""
    try:
        with np.load(path) as arrays:
            positive = Embeddings(*(torch.from_numpy(arrays[k]) for k in ("prompt_embeds", "pooled_prompt_embeds")))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CorruptFileError(f"{path} holds no prompt embeddings: {error}") from error
    assert positive.pooled is not None
    return Prompt(PROMPT, positive, Embeddings(torch.zeros_like(positive.tokens), torch.zeros_like(positive.pooled)))
