"""Several processes that train one restorer: which of them this is, means over all, and what one does for all.

A launcher (`accelerate launch`, `torchrun`) starts them; without one everything here is what a lone process needs. The
adapters' gradients are averaged by hand rather than by DistributedDataParallel, which would have to be told which of
two adapters on one network takes part in which of its backward passes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nifi_ns.errors import NifiError

_PATIENCE = timedelta(hours=12)  # the others wait while one evaluates; of a process that died they hear at once
T = TypeVar("T")


def join(device: str | None = None) -> str | None:
    """Meet the processes that a launcher started beside this one; the device that this one is to use.

    Args:
        device: "cpu", "cuda", or by default a GPU for each process if there are any; one GPU by its number only alone.

    Raises:
        NifiError: if several processes would share a GPU.
    """
    from accelerate import PartialState

    gpu = torch.cuda.is_available() and device != "cpu"
    state = PartialState(cpu=not gpu, timeout=_PATIENCE)
    if state.num_processes == 1:
        return device
    if device not in (None, "cpu", "cuda"):
        raise NifiError(f"{state.num_processes} processes cannot all use {device}: leave --device away")
    return str(state.device)


def leave() -> None:
    """Part from the others, once nothing is left to do together."""
    if dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def index() -> int:
    """Which of them this is, from 0: the one that writes files, shows progress and evaluates."""
    return dist.get_rank() if dist.is_initialized() else 0


def average(tensors: Sequence[Tensor]) -> None:
    """Replace float32 tensors, of the same shapes in every process, by their means over all processes.

    Raises:
        NifiError: if another process is gone.
    """
    if count() == 1:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    with _others():
        dist.all_reduce(flat)
    flat /= count()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(mean.view_as(tensor))


def from_first(value: T | None) -> T:
    """The `value` of process 0, in every process; the others wait for it. Raises as `average`."""
    values = [value]
    if count() > 1:
        with _others():
            dist.broadcast_object_list(values)
    assert values[0] is not None
    return values[0]


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The others enter once process 0 has left. Raises as `average`."""
    if index() > 0:
        from_first(None)
    yield
    if index() == 0:
        from_first(True)


@contextmanager
def _others() -> Iterator[None]:
    """Turn what is raised when another process is gone into one line. (NCCL may hang instead, until the launcher ends
    the processes that are left, as it does when one of them fails.)
    """
    try:
        yield
    except RuntimeError as error:
        raise NifiError(
            f"process {index()} lost another one, which may say why: go on from the last checkpoint with --resume"
        ) from error
