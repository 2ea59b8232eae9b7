"""The fixed prompt of a backbone: embeddings are computed once and stored, so that no text encoder runs afterwards."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import atomic_path

DEFAULT_PROMPT = "a sharp, detailed, realistic photograph"
PROMPT_FILE = "prompt.safetensors"


@dataclass(frozen=True)
class Embeddings:
    """The text encoders' output for one text."""

    tokens: Tensor
    """[1, L, D]"""
    pooled: Tensor | None = None
    """[1, P] for families that use it (SD3)."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Embeddings":
        """Return the embeddings on `device` as `dtype`."""
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return Embeddings(self.tokens.to(device, dtype), pooled)

    def expand(self, batch: int) -> "Embeddings":
        """Return the embeddings repeated for a batch, without a copy."""
        pooled = None if self.pooled is None else self.pooled.expand(batch, -1)
        return Embeddings(self.tokens.expand(batch, -1, -1), pooled)


@dataclass(frozen=True)
class Prompt:
    """A fixed prompt, and the null prompt for classifier-free guidance."""

    text: str
    positive: Embeddings
    null: Embeddings

    def expand(self, batch: int, dropped: Tensor | None = None) -> Embeddings:
        """Return the fixed prompt for a batch, and the null prompt for samples marked in `dropped` [B]."""
        positive = self.positive.expand(batch)
        if dropped is None:
            return positive
        null = self.null.expand(batch)
        tokens = torch.where(dropped[:, None, None], null.tokens, positive.tokens)
        if positive.pooled is None or null.pooled is None:
            return Embeddings(tokens)
        return Embeddings(tokens, torch.where(dropped[:, None], null.pooled, positive.pooled))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Prompt":
        """Return the prompt on `device` as `dtype`."""
        return Prompt(self.text, self.positive.to(device, dtype), self.null.to(device, dtype))

    def save(self, path: Path | str) -> None:
        """Write the embeddings, atomically, as safetensors with the text in the metadata."""
        tensors = {"tokens": self.positive.tokens, "null_tokens": self.null.tokens}
        if self.positive.pooled is not None and self.null.pooled is not None:
            tensors |= {"pooled": self.positive.pooled, "null_pooled": self.null.pooled}
        with atomic_path(path) as temporary:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, {"prompt": self.text})

    @staticmethod
    def load(path: Path | str) -> "Prompt":
        """Read embeddings written by `save`.

        Raises:
            NifiError: if the file is missing or damaged (CorruptFileError).
        """
        if not Path(path).is_file():
            raise NifiError(f"no prompt embeddings at {path}")
        try:
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get("prompt", "")
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            positive = Embeddings(tensors["tokens"], tensors.get("pooled"))
            return Prompt(text, positive, Embeddings(tensors["null_tokens"], tensors.get("null_pooled")))
        except (SafetensorError, KeyError) as error:
            raise CorruptFileError(
                f"{path} is damaged or holds no prompt embeddings ({error}); write it again"
            ) from error
