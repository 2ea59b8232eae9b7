"""Where the files of a backbone are (a folder, the hub, this package), and one-line errors if they cannot be read."""

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
"""The folder of the backbones that come with this package."""
_LOADING = threading.RLock()  # diffusers and transformers change the process while they load: default dtype, nn.Module


@dataclass(frozen=True)
class Source:
    """A diffusers folder, or a repository of the same layout on the Hugging Face hub."""

    location: str
    """What diffusers' `from_pretrained` takes."""
    name: str
    """By which it is found again from any folder: its absolute path, a hub id, or the name of one in this package."""
    local: bool

    @property
    def packaged(self) -> bool:
        """Whether it comes with this package."""
        return self.local and Path(self.location).parent == WEIGHTS.resolve()

    def has(self, path: str) -> bool:
        """Return whether it has the file `path`; on the hub, this downloads it."""
        if self.local:
            return (Path(self.location) / path).is_file()
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            self.file(path)
        except LocalEntryNotFoundError:  # not "there is none" but "cannot be reached"
            raise
        except EntryNotFoundError:
            return False
        return True

    def file(self, path: str) -> Path:
        """Return the path of a local copy of the file `path`."""
        if self.local:
            return Path(self.location) / path
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self.location, path))

    def config(self, path: str) -> dict[str, Any]:
        """Return the content of the JSON file `path`."""
        return json.loads(self.file(path).read_text())


def is_hub_id(name: str) -> bool:
    """Return whether `name` can only be a repository on the hub (owner/name), and is not meant as a path.

    A path is what exists, what starts with `.`, `~` or a slash, and what goes on from a folder that exists.
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
    """Find what a folder, a hub id (such as stabilityai/sd-turbo) or the name of a backbone in this package means.

    Nothing is asked of the hub. A name of this package's means its backbone, even where a folder is called the same.

    Args:
        name: which one.
        what: what it is to be, for the error's text.

    Raises:
        NifiError: if it can be none of them: what looks like a path has to exist.
    """
    if name in (folder.name for folder in WEIGHTS.iterdir()):
        return Source(str(WEIGHTS.resolve() / name), name, local=True)
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(str(path.resolve()), str(path.resolve()), local=True)
    if not is_hub_id(name):
        packaged_too = " or nifi-tiny" if what == "backbone" else ""
        raise NifiError(f"no {what} {name!r}: give a diffusers folder, a hub id (owner/name){packaged_too}")
    return Source(name, name, local=False)


def placement(device: torch.device | str | None, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    """Return device and dtype of weights; by default CUDA and bfloat16 if there is a GPU, else the CPU and float32."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return device, dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)


@contextmanager
def reading(name: str, what: str = "backbone") -> Iterator[None]:
    """Load `name` in this context: one thread at a time, without progress bars, and with errors of one line.

    Raises:
        NifiError: for what diffusers, transformers and the hub raise; it says what to do.
    """
    from diffusers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
    from safetensors import SafetensorError

    with _LOADING:
        shown = is_progress_bar_enabled()
        disable_progress_bar()  # one for each sharded model, over in a moment
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
                f"cannot reach the hub for {name}, neither a folder nor in the local cache: connect, or give a folder"
            ) from error
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0]
            raise NifiError(f"cannot load the {what} {name}: {reason}") from error
        finally:
            if shown:
                enable_progress_bar()
