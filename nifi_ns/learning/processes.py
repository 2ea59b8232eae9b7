"""Training with several processes: their number and index, means over all, and values from the first one.

A launcher (`accelerate launch`, `torchrun`) starts them. Without one, everything here works for a single process.
Gradients are averaged by hand, because DistributedDataParallel would need to know which of the two adapters on one
network each backward pass trains.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nifi_ns.errors import NifiError

_PATIENCE = timedelta(hours=12)  # the others wait during evaluations; a process that ends is noticed at once
T = TypeVar("T")


def join(device: str | None = None) -> str | None:
    """Connect to the other processes of the launcher, and return the device to use.

    Args:
        device: "cpu" or "cuda"; default: a GPU for each process if there are any. A numbered GPU works only with one
            process.

    Raises:
        NifiError: if several processes would share a GPU.
    """
    from accelerate import PartialState

    gpu = torch.cuda.is_available() and device != "cpu"
    state = PartialState(cpu=not gpu, timeout=_PATIENCE)
    if state.num_processes == 1:
        return device
    if device not in (None, "cpu", "cuda"):
        raise NifiError(f"{state.num_processes} processes cannot all use {device}: omit --device")
    return str(state.device)


def leave() -> None:
    """Disconnect from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def index() -> int:
    """Return the index of this process. Process 0 writes files, shows progress and evaluates."""
    return dist.get_rank() if dist.is_initialized() else 0


def average(tensors: Sequence[Tensor]) -> None:
    """Replace float32 tensors by their means over all processes. Shapes must be the same in every process.

    Raises:
        NifiError: if another process ended.
    """
    if count() == 1:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    with _lost_process_in_one_line():
        dist.all_reduce(flat)
    flat /= count()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(mean.view_as(tensor))


def from_first(value: T | None) -> T:
    """Return the `value` of process 0 in every process. The others wait. Raises the errors of `average`."""
    values = [value]
    if count() > 1:
        with _lost_process_in_one_line():
            dist.broadcast_object_list(values)
    assert values[0] is not None
    return values[0]


@contextmanager
def first_before_others() -> Iterator[None]:
    """Run the block in process 0 first and then in the others. Raises the errors of `average`."""
    if index() > 0:
        from_first(None)
    yield
    if index() == 0:
        from_first(True)


@contextmanager
def _lost_process_in_one_line() -> Iterator[None]:
    """Raise a one-line error if another process ended.

    NCCL may hang instead, until the launcher ends the remaining processes, as it does when one fails.
    """
    try:
        yield
    except RuntimeError as error:
        raise NifiError(
            f"process {index()}: another process ended, see its output: continue from the last checkpoint with --resume"
        ) from error
