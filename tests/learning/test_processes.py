"""Training with several processes gives the same result as with one, and does not wait for a process that ended."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pair_folders import write_scene
from safetensors.torch import load_file
from torch import nn

from nifi_ns.commands.train import preset
from nifi_ns.diffusion import Backbone
from nifi_ns.errors import NifiError
from nifi_ns.learning import AdapterOptimizer, processes
from nifi_ns.restore import ObjectiveConfig, Trainer

CONFIG = preset("nifi-tiny").training.with_options(
    steps=6,
    batch_size=4,
    crop=32,
    rank=2,
    lr=1e-2,
    critic_lr=1e-2,
    schedule="constant",
    log_every=1,
    eval_every=4,
    eval_views=1,
    attended_photos=2,
    objective=ObjectiveConfig(guidance_scale=1.0, prompt_dropout=0.0),
)


def test_a_batch_that_cannot_be_shared_is_refused():
    assert CONFIG.batch_per_process(2) == 2
    with pytest.raises(NifiError, match=r"batch_size 4: 3 processes .* need a multiple of 3"):
        CONFIG.batch_per_process(3)
    with pytest.raises(NifiError, match="2 processes with gradient_accumulation 4 need a multiple of 8"):
        replace(CONFIG, gradient_accumulation=4).batch_per_process(2)


def test_a_single_process_does_not_wait():
    value = torch.tensor([1.0, torch.nan])
    processes.average([value])
    with processes.first_before_others():
        assert (processes.count(), processes.index(), processes.from_first("x")) == (1, 0, "x")
    assert value[0] == 1 and value[1].isnan()


def _learn(rank: int, folder: Path) -> None:
    """Run three steps: one on both processes, one with bad gradients on the second only, one without the second."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    parameter = nn.Parameter(torch.ones(3))
    learner = AdapterOptimizer([parameter], 0.1, CONFIG.optimization, torch.device("cpu"))
    taken, means = [], []
    for factor in (1.0 + rank, torch.nan if rank else 1.0):
        loss = factor * parameter.sum()
        learner.backward(loss)
        values = loss.detach()[None]
        taken.append(learner.step(values, 1.0))
        means.append(values.item())
    if rank == 0:
        learner.backward(parameter.sum())
        with pytest.raises(NifiError, match="process 0: another process ended"):
            learner.step(torch.ones(1), 1.0)
    torch.save((taken, means, parameter.detach()), folder / f"{rank}.pt")
    dist.destroy_process_group()  # otherwise gloo's threads may still run at exit, which aborts the process


def test_processes_update_and_skip_together_and_notice_one_that_ended(tmp_path: Path):
    torch.multiprocessing.spawn(_learn, (tmp_path,), nprocs=2)
    (taken, means, parameter), (*others, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert taken == others[0] == [True, False]
    assert means[0] == others[1][0] == 4.5  # mean of 3 and 6
    assert torch.equal(parameter, other) and 0.85 < parameter[0] < 0.95


def test_two_processes_train_like_one_and_one_resumes_the_training_of_two(backbone_folders, tmp_path: Path):
    folders = [write_scene(tmp_path / "pairs", rate=rate, attended_photos=3) for rate in ("10KB", "25KB")]

    def load() -> Backbone:
        return Backbone.from_pretrained(backbone_folders["sd3"], device="cpu")

    launch = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    options = ("--pairs", tmp_path / "pairs", "--output-dir", tmp_path / "two", "--device", "cpu", "--steps", "4")
    options += ("--batch-size", "4", "--crop", "32", "--rank", "2", "--lr", "1e-2", "--critic-lr", "1e-2")
    options += (
        "--schedule",
        "constant",
        "--attended_photos",
        "2",
        "--log-every",
        "1",
        "--eval-every",
        "4",
        "--eval-views",
        "1",
    )
    (tmp_path / "preset.yaml").write_text(f"base: nifi-tiny\nbackbone: {backbone_folders['sd3']}\n")
    options += ("--preset", tmp_path / "preset.yaml", "--t0", "199", "--noise-scale", "1.0")
    options += ("--latent", "1.0", "--pixel", "0.0")
    command = [*launch, "--main_process_port", "0", "-m", "nifi_ns.commands.train", *map(str, options)]
    subprocess.run(command, check=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    Trainer(load(), folders, tmp_path / "two", CONFIG, resume=True).train()
    Trainer(load(), folders, tmp_path / "one", CONFIG).train()

    def losses(name: str) -> list[list[float]]:
        with open(tmp_path / name / "logs" / "losses.csv") as file:
            return [[float(value) for value in row] for row in list(csv.reader(file))[1:]]

    torch.testing.assert_close(torch.tensor(losses("two")), torch.tensor(losses("one")), rtol=1e-4, atol=1e-5)
    two, one = (load_file(tmp_path / name / "checkpoints" / "last.safetensors") for name in ("two", "one"))
    assert two.keys() == one.keys()
    trained = [key for key in one if key.startswith("adapter/phi_")]
    difference = sum((two[key] - one[key]).square().sum() for key in trained) ** 0.5
    assert difference < 1e-2 * sum(one[key].square().sum() for key in trained) ** 0.5
