"""Training checkpoints: adapters, optimizer moments and progress in one safetensors file, written atomically.

It is a single file because one rename is atomic. The header holds JSON because the project writes no pickles. Random
numbers depend only on the seed and the step, so no generator state is saved.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import atomic_path

VERSION = 2


def checkpoint_to_write(output: Path, resume: bool, overwrite: bool) -> Path:
    """Return the path of the checkpoint of a training in `output`.

    Raises:
        NifiError: if it exists and neither `resume` nor `overwrite` is set, or does not exist and `resume` is set.
    """
    path = output / "checkpoints" / "last.safetensors"
    if resume and overwrite:
        raise NifiError("give either --resume or --overwrite, not both")
    if path.exists() and not (resume or overwrite):
        raise NifiError(f"{output} already holds a training: give --resume, --overwrite or another --output-dir")
    if resume and not path.exists():
        raise NifiError(f"nothing to resume in {output}: expected {path}")
    return path


def save_checkpoint(
    path: Path | str, adapters: dict[str, dict[str, Tensor]], optimizers: Mapping[str, Optimizer], state: dict[str, Any]
) -> None:
    """Write adapters and optimizers by name, and `state` (JSON values), atomically."""
    tensors = {f"adapter/{name}/{key}": value for name, values in adapters.items() for key, value in values.items()}
    for name, optimizer in optimizers.items():
        for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
            moments = optimizer.state.get(parameter, {})  # bitsandbytes nests its state_dict()
            tensors |= {f"optimizer/{name}/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    # copied, because bitsandbytes' moments share a table and safetensors refuses shared memory
    tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"state": json.dumps({"version": VERSION, **state})})


def read_state(path: Path | str) -> dict[str, Any]:
    """Return the `state` of a checkpoint without reading tensors.

    Raises:
        NifiError: if the file does not exist or has another version.
        CorruptFileError: if it is damaged or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise NifiError(f"nothing to resume: no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            if strange := next((key for key in file.keys() if key.count("/") < 2), None):  # noqa: SIM118
                raise ValueError(f"unexpected tensor {strange!r}")
        version = state.pop("version")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} is not a readable checkpoint: {error}") from error
    if version != VERSION:
        raise NifiError(f"{path} has version {version}, this program reads {VERSION}: train again")
    return state


def read_adapters(path: Path | str) -> dict[str, dict[str, Tensor]]:
    """Return the adapters' state dicts by name. Raises the errors of `read_state`."""
    read_state(path)
    with safe_open(path, framework="pt") as file:
        adapters: dict[str, dict[str, Tensor]] = {}
        for key in file.keys():  # noqa: SIM118  (safe_open is not a mapping)
            kind, name, rest = key.split("/", 2)
            if kind == "adapter":
                adapters.setdefault(name, {})[rest] = file.get_tensor(key)
        return adapters


def load_optimizers(path: Path | str, optimizers: Mapping[str, Optimizer]) -> None:
    """Load the saved moments into optimizers of the same names and parameters. Raises the errors of `read_state`."""
    read_state(path)
    with safe_open(path, framework="pt") as file:
        moments: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in optimizers}
        for key in file.keys():  # noqa: SIM118
            kind, name, rest = key.split("/", 2)
            if kind == "optimizer" and name in moments:
                index, field = rest.split("/")
                value = file.get_tensor(key)
                count = value.ndim == 0 and not value.is_floating_point()  # bitsandbytes counts steps in an int
                moments[name].setdefault(int(index), {})[field] = value.item() if count else value
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments[name]})
