"""Measure how much memory the training of Stable Diffusion 3 medium takes, with or without a GPU.

    python scripts/bench_memory.py                  # calculated in seconds, without a GPU or weights
    python scripts/bench_memory.py --device cuda    # measured with random weights

The calculation runs two steps of `ns-nifi-train --preset sd3` at a batch of 1 on tensors without content
(FakeTensorMode). Each storage counts until autograd and Python release it. This includes tensors saved for the backward
pass, recomputed ones and temporary ones. It excludes the CUDA context, workspaces of kernels and fragmentation of the
allocator. Attention is counted as in PyTorch's flash attention.
"""

import contextlib
import json
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from _architectures import SD3, random_backbone, schedule_of, without_content
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nifi_ns.commands import run
from nifi_ns.commands.train import preset
from nifi_ns.diffusion import Backbone, Diffusion, FlowMatching
from nifi_ns.errors import NifiError
from nifi_ns.files import write_text
from nifi_ns.learning import make_optimizer
from nifi_ns.restore import LossNoise, TrainingConfig, critic_loss, restorer_loss


class LiveBytes(TorchDispatchMode):
    """Count the bytes of all live tensors created within the block, as `now` and `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        """Count the tensor's storage once while it lives."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count its outputs."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result


@dataclass
class BenchMemory:
    """Measure the memory of training Stable Diffusion 3 medium, by purpose."""

    device: Literal["calculated", "cuda"] = "calculated"
    """calculated: without a GPU; cuda: measured on a GPU."""
    crop: int = 512
    """Side of the crops in pixels."""
    batch_size: int = 1
    """Crops processed at once: the batch divided by --gradient-accumulation."""
    gradient_checkpointing: bool = True
    """Same as the option of ns-nifi-train."""
    output: Path = Path("results/bench_memory.json")
    """JSON file for the results."""

    def main(self) -> None:
        """Run two steps, print a table and write the results."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise NifiError("--device cuda: there is no GPU; omit --device to calculate")
        training = preset("sd3").training
        training = training.with_options(
            crop=self.crop, batch_size=self.batch_size, gradient_checkpointing=self.gradient_checkpointing
        )
        device = torch.device("cuda" if self.device == "cuda" else "cpu")
        used = measure(training, device, SD3)
        write_text(self.output, json.dumps(used, indent=1) + "\n")
        how = "recomputed" if self.gradient_checkpointing else "kept"
        title = f"SD3 medium, {self.crop}x{self.crop}, batch {self.batch_size}, activations {how}, {self.device}"
        table = Table("", "GB", title=title, box=SIMPLE_HEAD, pad_edge=False)
        for name, size in used.items():
            table.add_row(name, f"{size / 1e9:.2f}")
        Console().print(table)


def measure(training: TrainingConfig, device: torch.device, shapes: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Return bytes by purpose after two steps. On a CPU they are calculated."""
    real = device.type == "cuda"
    schedule = schedule_of("sd3")
    with contextlib.ExitStack() as stack:
        if not real:
            stack.enter_context(without_content())
        stack.enter_context(device)
        backbone, perceptual = _build(training, schedule, device, shapes)
        adapters = {name: backbone.adapter_parameters(name) for name in ("phi_minus", "phi_plus")}
        trained = [parameter for parameters in adapters.values() for parameter in parameters]
        models = (backbone.family.network, backbone.vae, perceptual)
        ours = set(map(id, trained))
        frozen = [t for model in models for t in (*model.parameters(), *model.buffers()) if id(t) not in ours]
        optimizers = {name: make_optimizer(trained, 1e-6, training.optimization) for name, trained in adapters.items()}
        live = LiveBytes()
        for tensor in (*frozen, *trained):
            live.add(tensor)
        peaks = {}
        with contextlib.nullcontext() if real else live:
            for _ in range(2):  # the first step creates the moments
                for phase in _step(training, backbone, perceptual, optimizers, device):
                    peaks[phase] = torch.cuda.max_memory_allocated() if real else live.peak
                    live.peak = live.now
                    if real:
                        torch.cuda.reset_peak_memory_stats()
        weights, values = _bytes(frozen), _bytes(trained)
        moments = sum(_bytes(state.values()) for o in optimizers.values() for state in o.state.values())
    kept = weights + values + moments
    return {
        "frozen weights, bf16 (LPIPS: fp32)": weights,
        "both adapters, fp32": values,
        "AdamW moments, fp32": moments,
        "activations and gradients at most, restorer": peaks["restorer"] - kept,
        "activations and gradients at most, critic": peaks["critic"] - kept,
        "all together at most": max(peaks.values()),
    }


def _build(
    training: TrainingConfig,
    schedule: FlowMatching | Diffusion,
    device: torch.device,
    shapes: dict[str, dict[str, Any]],
) -> tuple[Backbone, nn.Module]:
    """Return SD3 in bfloat16 with random weights and both adapters, and LPIPS."""
    import lpips

    perceptual = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False).requires_grad_(False)
    backbone = random_backbone("sd3", schedule, device, torch.bfloat16, shapes)
    adapters = training.adapters
    backbone.add_adapters(adapters.rank, adapters.lora_alpha, adapters.vae_encoder)
    if training.gradient_checkpointing:
        backbone.checkpoint_gradients()
    return backbone, perceptual


def _step(
    training: TrainingConfig,
    backbone: Backbone,
    perceptual: nn.Module,
    optimizers: dict[str, torch.optim.Optimizer],
    device: torch.device,
) -> Iterator[str]:
    """Run a step like `Trainer`, and yield the name of each phase when it ends."""
    objective, count, side = training.objective, training.batch_size, training.data.crop // backbone.downsampling
    clean, degraded = torch.rand(2, count, 3, training.data.crop, training.data.crop)
    noise = torch.randn(2, count, backbone.latent_channels, side, side)
    draws = LossNoise(noise[0], torch.full((count,), 300.0), noise[1], torch.zeros(count, dtype=torch.bool))
    with torch.autocast(device.type, torch.bfloat16):
        lpips = lambda a, b: perceptual(a, b, normalize=True).mean()  # noqa: E731
        loss = restorer_loss(backbone, degraded, clean, draws, objective, lpips, decode=training.decode)
    loss.total.backward()
    _descend(optimizers["phi_minus"])
    restored = loss.restored
    del loss
    yield "restorer"
    with torch.autocast(device.type, torch.bfloat16):
        critic = critic_loss(backbone, restored, draws.timestep, draws.noise, draws.dropped)
    critic.backward()
    _descend(optimizers["phi_plus"])
    yield "critic"


def _descend(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _bytes(tensors: Any) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


if __name__ == "__main__":
    run(BenchMemory)
