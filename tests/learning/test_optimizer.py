"""Optimizers of adapters, their state in checkpoints, and the running mean."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from torch import Tensor, nn

from nifi_ns import errors
from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.learning import (
    AdapterOptimizer,
    OptimizerConfig,
    averaged,
    load_optimizers,
    make_optimizer,
    read_adapters,
    read_state,
    save_checkpoint,
)

CPU = torch.device("cpu")


def parameter() -> nn.Parameter:
    """Return a parameter above 4096 values, up to which bitsandbytes keeps moments in full precision."""
    return nn.Parameter(torch.linspace(-1, 1, 128 * 64).view(128, 64))


def descend(learner: AdapterOptimizer, parameter: nn.Parameter, steps: int) -> Tensor:
    target = torch.linspace(1, 2, parameter.numel()).view_as(parameter)
    for _ in range(steps):
        loss = (parameter - target).square().mean()
        learner.backward(loss)
        assert learner.step(loss.detach()[None], 1.0)
    return parameter.detach().clone()


@pytest.mark.parametrize("optimizer", ["fused", "adamw8bit"])
def test_every_optimizer_approximates_adamw_and_resumes_exactly(tmp_path: Path, optimizer):
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    config = OptimizerConfig(optimizer=optimizer)
    ours, plain = parameter(), parameter()
    learner = AdapterOptimizer([ours], 0.01, config, CPU)
    plainly = descend(AdapterOptimizer([plain], 0.01, OptimizerConfig(), CPU), plain, 5)
    difference = (descend(learner, ours, 5) - plainly).abs().max()
    assert 0 < difference < (1e-6 if optimizer == "fused" else 2e-2)
    save_checkpoint(tmp_path / "c.safetensors", {}, {"phi_minus": learner.optimizer}, {})
    other = nn.Parameter(ours.detach().clone())
    again = AdapterOptimizer([other], 0.01, config, CPU)
    load_optimizers(tmp_path / "c.safetensors", {"phi_minus": again.optimizer})
    assert torch.equal(descend(again, other, 3), descend(learner, ours, 3))


def test_adamw8bit_without_bitsandbytes_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(NifiError, match=r"pip install .nifi-ns\[train\]"):
        OptimizerConfig(optimizer="adamw8bit")


def test_adamw8bit_uses_bitsandbytes(monkeypatch):
    """A stand-in for bitsandbytes, so that the test runs on every machine."""

    class AdamW8bit(torch.optim.AdamW):
        pass

    stand_in = type(sys)("bitsandbytes")
    stand_in.optim = type(sys)("bitsandbytes.optim")  # type: ignore[attr-defined]
    stand_in.optim.AdamW8bit = AdamW8bit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", stand_in)
    monkeypatch.setattr(errors, "find_spec", lambda name: stand_in)
    optimizer = make_optimizer([parameter()], 0.1, OptimizerConfig(optimizer="adamw8bit", weight_decay=0.5))
    assert isinstance(optimizer, AdamW8bit)
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.1, 0.5)


def test_the_running_mean_replaces_the_parameters_within_the_block():
    values = [nn.Parameter(torch.zeros(2))]
    mean = EMAModel(values, decay=0.5, foreach=True)
    values[0].data += 1
    mean.step(values)  # the first step initialises the mean
    values[0].data += 1
    mean.step(values)
    with pytest.raises(KeyError), averaged(values, mean):
        torch.testing.assert_close(values[0].detach(), torch.full((2,), 1 * 2 / 11 + 2 * 9 / 11))
        raise KeyError
    assert torch.equal(values[0].detach(), torch.full((2,), 2.0))
    with averaged(values, None):
        assert torch.equal(values[0].detach(), torch.full((2,), 2.0))


def test_learning_rates_follow_the_schedule():
    cosine = OptimizerConfig(schedule="cosine", warmup_steps=4)
    assert [cosine.lr_factor(step, 10**6) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert cosine.lr_factor(50, 100) == pytest.approx(0.525) and cosine.lr_factor(100, 100) == pytest.approx(0.05)
    constant = replace(cosine, schedule="constant")
    assert [constant.lr_factor(step, 100) for step in (1, 3, 99)] == [0.5, 1, 1]


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay: float):
    with pytest.raises(NifiError, match="ema: expected a decay"):
        OptimizerConfig(ema=decay)


@pytest.mark.parametrize("tensors", [{"weight": torch.zeros(1)}, {"adapter/phi_minus": torch.zeros(1)}])
def test_unexpected_tensors_are_refused_in_one_line(tmp_path: Path, tensors: dict[str, Tensor]):
    save_file(tensors, tmp_path / "c.safetensors", metadata={"state": '{"version": 2}'})
    for read in (read_state, read_adapters):
        with pytest.raises(CorruptFileError, match=r"c\.safetensors is not a readable checkpoint: unexpected tensor"):
            read(tmp_path / "c.safetensors")


def test_a_header_with_wrong_sizes_is_refused_in_one_line(tmp_path: Path):
    save_checkpoint(tmp_path / "c.safetensors", {"phi_minus": {"a": torch.zeros(64)}}, {}, {"step": 1})
    data = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes((2**60).to_bytes(8, "little") + data[8:])
    with pytest.raises(CorruptFileError, match=r"c\.safetensors is not a readable checkpoint"):
        read_state(tmp_path / "c.safetensors")
