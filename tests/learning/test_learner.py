"""What updates an adapter: the optimizers, what a checkpoint keeps of them, and the running mean."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nifi_ns.errors import NifiError
from nifi_ns.learning import Learner, RunningMean, load_optimizers, make_optimizer, save_checkpoint
from nifi_ns.restore import TrainingConfig
from nifi_ns.restore import _config as config_module

CPU = torch.device("cpu")


def parameter() -> nn.Parameter:
    """More than the 4096 values of which bitsandbytes keeps the moments in full precision."""
    return nn.Parameter(torch.linspace(-1, 1, 128 * 64).view(128, 64))


def descend(learner: Learner, parameter: nn.Parameter, steps: int) -> Tensor:
    target = torch.linspace(1, 2, parameter.numel()).view_as(parameter)
    for _ in range(steps):
        loss = (parameter - target).square().mean()
        learner.add(loss)
        assert learner.step(loss.detach()[None], 1.0)
    return parameter.detach().clone()


@pytest.mark.parametrize("optimizer", ["fused", "adamw8bit"])
def test_every_optimizer_is_about_adamw_and_goes_on_exactly_where_it_was_saved(tmp_path: Path, optimizer):
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    config = TrainingConfig(optimizer=optimizer)
    ours, plain = parameter(), parameter()
    learner = Learner([ours], 0.01, config, CPU)
    plainly = descend(Learner([plain], 0.01, TrainingConfig(), CPU), plain, 5)
    difference = (descend(learner, ours, 5) - plainly).abs().max()
    assert 0 < difference < (1e-6 if optimizer == "fused" else 2e-2)
    save_checkpoint(tmp_path / "c.safetensors", {}, {"phi_minus": learner.optimizer}, {})
    other = nn.Parameter(ours.detach().clone())
    again = Learner([other], 0.01, config, CPU)
    load_optimizers(tmp_path / "c.safetensors", {"phi_minus": again.optimizer})
    assert torch.equal(descend(again, other, 3), descend(learner, ours, 3))


def test_eight_bits_without_bitsandbytes_are_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(config_module, "find_spec", lambda name: None)
    with pytest.raises(NifiError, match="pip install bitsandbytes"):
        TrainingConfig(optimizer="adamw8bit")


def test_eight_bits_are_asked_of_bitsandbytes(monkeypatch):
    """Of a stand-in, which is here on every machine."""

    class AdamW8bit(torch.optim.AdamW):
        pass

    stand_in = type(sys)("bitsandbytes")
    stand_in.optim = type(sys)("bitsandbytes.optim")  # type: ignore[attr-defined]
    stand_in.optim.AdamW8bit = AdamW8bit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", stand_in)
    monkeypatch.setattr(config_module, "find_spec", lambda name: stand_in)
    optimizer = make_optimizer([parameter()], 0.1, TrainingConfig(optimizer="adamw8bit", weight_decay=0.5))
    assert isinstance(optimizer, AdamW8bit)
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.1, 0.5)


def test_a_running_mean_follows_and_can_stand_in():
    values = nn.Parameter(torch.zeros(2))
    mean = RunningMean([values], decay=0.5)
    expected = torch.zeros(2)
    for step, decay in enumerate((0.1, 2 / 11, 0.25, 4 / 13, 5 / 14, 0.4, 7 / 16, 8 / 17, 0.5, 0.5, 0.5)):
        values.data += 1
        mean.update(step)
        expected = decay * expected + (1 - decay) * values.detach()
    with mean.in_place():
        torch.testing.assert_close(values.detach(), expected)
    assert torch.equal(values.detach(), torch.full((2,), 11.0))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay: float):
    with pytest.raises(NifiError, match="ema: expected a decay"):
        replace(TrainingConfig(), ema=decay)
