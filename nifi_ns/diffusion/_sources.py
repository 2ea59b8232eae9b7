"""Where the files of a backbone are (a folder, the hub, this package), and what to say if they cannot be had."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nifi_ns.errors import NifiError

WEIGHTS = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True)
class Source:
    """A diffusers folder, or a repository of the same layout on the Hugging Face hub."""

    location: str
    """What diffusers' `from_pretrained` takes."""
    name: str
    """By which it is found again from any folder: its absolute path, a hub id, or the name of one in this package."""
    local: bool

    def has(self, path: str) -> bool:
        """Whether it has the file `path`."""
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
        """A local copy of the file `path`."""
        if self.local:
            return Path(self.location) / path
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self.location, path))

    def config(self, path: str) -> dict[str, Any]:
        """The JSON file `path`."""
        return json.loads(self.file(path).read_text())


def resolve(name: str, what: str = "backbone") -> Source:
    """The source meant by a folder, a hub id (such as stabilityai/sd-turbo) or the name of one in this package.

    `what` it is to be is for the error's text.

    Raises:
        NifiError: if it can be none of them.
    """
    if Path(name).is_dir():
        folder = str(Path(name).resolve())
        return Source(folder, folder, local=True)
    packaged = WEIGHTS / name
    if "/" not in name and packaged.is_dir():
        return Source(str(packaged), name, local=True)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        packaged_too = " or nifi-tiny" if what == "backbone" else ""
        raise NifiError(f"no {what} {name!r}: give a diffusers folder, a hub id (owner/name){packaged_too}")
    return Source(name, name, local=False)


def placement(device: torch.device | str | None, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    """Where weights go and as what, unless said: CUDA and bfloat16 if there is a GPU, else the CPU and float32."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return device, dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)


@contextmanager
def reading(name: str, what: str = "backbone") -> Iterator[None]:
    """Load `name` without progress bars; turn what diffusers and the hub raise into one line that says what to do."""
    from diffusers.utils.logging import disable_progress_bar, enable_progress_bar
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
    from safetensors import SafetensorError

    disable_progress_bar()  # one for each sharded model, over in a moment
    try:
        yield
    except GatedRepoError as error:
        raise NifiError(
            f"{name} is gated: accept its licence at https://huggingface.co/{name}, then log in with `hf auth login`"
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
        enable_progress_bar()
