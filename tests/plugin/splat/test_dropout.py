"""Random dropout of gaussians in training."""

from pathlib import Path

import pytest
import torch
from tiny_runs import model_of, train, training_config

from nifi_ns.errors import NifiError
from nifi_ns.plugin.splat.dropout import drop


def test_a_share_is_dropped_and_the_others_compensate() -> None:
    torch.manual_seed(0)
    opacities = torch.full((10_000, 1), 0.4).logit().requires_grad_()
    dropped = drop(opacities, 0.25)
    values = dropped.sigmoid()
    left = values > 1e-3
    assert left.float().mean().item() == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(values[left], torch.full_like(values[left], 0.4 / 0.75))
    dropped.sum().backward()
    assert opacities.grad is not None
    assert (opacities.grad[left] > 0).all()
    assert not opacities.grad[~left].any()


def test_raised_opacities_stay_below_one() -> None:
    dropped = drop(torch.full((100, 1), 9.0), 0.5)
    left = dropped.sigmoid() > 1e-3
    assert dropped.isfinite().all() and left.any()
    assert (dropped[left] >= 9.0).all()


def test_dropout_is_used_in_training_only(tiny_capture: Path, tmp_path: Path) -> None:
    config = training_config(tiny_capture, tmp_path, compress=False, dropout=0.5)
    config.max_num_iterations = 20
    trainer = train(config)
    model = model_of(trainer)
    dataset = trainer.pipeline.datamanager.eval_dataset
    assert dataset is not None
    camera = dataset.cameras[0:1]
    model.train()
    one, other = (model.get_outputs(camera)["rgb"] for _ in range(2))
    assert (one - other).abs().mean() > 1e-3
    model.eval()
    one, other = (model.get_outputs(camera)["rgb"] for _ in range(2))
    assert torch.equal(one, other)


def test_an_invalid_rate_is_refused(tiny_capture: Path, tmp_path: Path) -> None:
    config = training_config(tiny_capture, tmp_path, dropout=1.0)
    with pytest.raises(NifiError, match="dropout is 1"):
        config.setup(local_rank=0, world_size=1).setup()
