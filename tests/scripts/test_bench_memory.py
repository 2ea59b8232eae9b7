"""The calculation of a training's memory: what is counted, and that it needs neither memory nor weights."""

from dataclasses import replace

import pytest
import torch
from _architectures import SD3
from bench_memory import LiveBytes, measure
from torch._subclasses.fake_tensor import FakeTensorMode

from nifi_ns.restore import TrainingConfig

TRAINING = TrainingConfig().with_options(batch_size=1, crop=32, rank=4, gradient_checkpointing=True)


@pytest.mark.parametrize("fake", [False, True])
def test_what_autograd_keeps_is_counted_and_what_is_let_go_is_not(fake: bool) -> None:
    with FakeTensorMode() if fake else torch.device("cpu"):
        x = torch.ones(1000, requires_grad=True)
        with LiveBytes() as live:
            y = x.exp().sin().exp()  # the sine's result is let go: no derivative needs it
            assert (live.now, live.peak) == (8000, 12000)
            y.view(10, 100).mul_(2)  # in place, of a view
            assert live.now == 8000
            del y
            assert live.now == 0


@pytest.mark.slow
def test_the_parts_of_a_miniature_are_exact() -> None:
    network = {**SD3["network"], "num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128}
    vae = {**SD3["vae"], "layers_per_block": 1, "block_out_channels": (32, 32, 64, 64)}
    shapes = {"network": network, "vae": vae}
    found = {
        kept: measure(replace(TRAINING, gradient_checkpointing=not kept), torch.device("cpu"), shapes)
        for kept in (False, True)
    }
    names = list(found[False])
    weights, adapters, moments, restorer, critic, total = names
    assert all(found[False][name] == found[True][name] for name in (weights, adapters))
    assert found[False][moments] == pytest.approx(2 * found[False][adapters], rel=0.01)  # and a count of steps each
    assert found[False][restorer] < 0.8 * found[True][restorer]
    assert found[False][critic] < found[True][critic]
    for used in found.values():
        assert used[total] == sum(used[n] for n in (weights, adapters, moments)) + max(used[restorer], used[critic])
