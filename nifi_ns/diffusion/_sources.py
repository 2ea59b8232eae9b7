"""Location of a backbone's files (a folder, the hub, this package), and one-line errors if they cannot be read."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nifi_ns.errors import NifiError

WEIGHTS = Path(__file__).parent.parent / "weights"
"""Folder of the backbones in this package."""
_LOADING = threading.RLock()  # while loading, diffusers and transformers change global state (default dtype, nn.Module)


@dataclass(frozen=True)
class Source:
    """A diffusers folder, or a repository with the same layout on the Hugging Face hub."""

    location: str
    """Argument for diffusers' `from_pretrained`."""
    name: str
    """Finds the source again from any working directory: an absolute path, a hub id, or a name in this package."""
    local: bool

    @property
    def packaged(self) -> bool:
        """Whether it is in this package."""
        return self.local and Path(self.location).parent == WEIGHTS.resolve()

    def has(self, path: str) -> bool:
        """Return whether the file `path` exists; on the hub, this downloads it."""
        if self.local:
            return (Path(self.location) / path).is_file()
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            self.file(path)
        except LocalEntryNotFoundError:  # a subclass that means "cannot be reached"
            raise
        except EntryNotFoundError:
            return False
        return True

    def file(self, path: str) -> Path:
        """Return the local path of the file `path`, downloading it if needed."""
        if self.local:
            return Path(self.location) / path
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self.location, path))

    def config(self, path: str) -> dict[str, Any]:
        """Return the content of the JSON file `path`."""
        return json.loads(self.file(path).read_text())


def is_hub_id(name: str) -> bool:
    """Return whether `name` can only be a repository on the hub (owner/name), not a path.

    Names that exist as paths, start with `.`, `~` or a slash, or continue an existing folder are paths.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    owner, slash, _ = name.partition("/")
    if not slash or name.startswith((".", "/", "~")) or Path(owner).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def resolve(name: str, what: str = "backbone") -> Source:
    """Find a folder, a hub id (such as stabilityai/sd-turbo) or the name of a backbone in this package.

    Does not access the hub. The name of a packaged backbone takes precedence over a folder of the same name.

    Args:
        name: the folder, hub id or name.
        what: what it should be, for the error message.

    Raises:
        NifiError: if it is none of these; something that looks like a path must exist.
    """
    if name in (folder.name for folder in WEIGHTS.iterdir()):
        return Source(str(WEIGHTS.resolve() / name), name, local=True)
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(str(path.resolve()), str(path.resolve()), local=True)
    if not is_hub_id(name):
        packaged_too = ", or nifi-tiny" if what == "backbone" else ""
        raise NifiError(f"no {what} {name!r}: expected a diffusers folder or a hub id (owner/name){packaged_too}")
    return Source(name, name, local=False)


def placement(device: torch.device | str | None, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    """Return device and dtype of weights; default: CUDA and bfloat16 if there is a GPU, else the CPU and float32."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return device, dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)


@contextmanager
def reading(name: str, what: str = "backbone") -> Iterator[None]:
    """Load `name` within the block: one thread at a time, without progress bars, and with one-line errors.

    Raises:
        NifiError: replaces the errors of diffusers, transformers and the hub, and says what to do.
    """
    from diffusers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
    from safetensors import SafetensorError

    with _LOADING:
        shown = is_progress_bar_enabled()
        disable_progress_bar()  # one per sharded model, each very short
        try:
            yield
        except GatedRepoError as error:
            raise NifiError(
                f"{name} is gated: accept its licence at https://huggingface.co/{name}, "
                "then log in with `hf auth login`"
            ) from error
        except RepositoryNotFoundError as error:
            raise NifiError(
                f"no folder and no hub repository {name!r}; for a private one, log in with `hf auth login`"
            ) from error
        except (LocalEntryNotFoundError, ConnectionError) as error:
            raise NifiError(
                f"cannot reach the hub for {name}, and it is neither a folder nor cached: connect, or use a folder"
            ) from error
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0]
            raise NifiError(f"cannot load the {what} {name}: {reason}") from error
        finally:
            if shown:
                enable_progress_bar()
