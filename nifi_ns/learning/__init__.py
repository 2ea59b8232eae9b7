"""The parts of a training loop: optimizers, checkpoints, several processes, logs."""

from nifi_ns.learning import processes
from nifi_ns.learning._checkpoints import (
    checkpoint_to_write,
    load_optimizers,
    read_adapters,
    read_state,
    save_checkpoint,
)
from nifi_ns.learning._learner import Learner, RunningMean, learning_rate, make_optimizer
from nifi_ns.learning._logs import TrainingLog, comparison_grid

__all__ = [
    "Learner",
    "RunningMean",
    "TrainingLog",
    "checkpoint_to_write",
    "comparison_grid",
    "learning_rate",
    "load_optimizers",
    "make_optimizer",
    "processes",
    "read_adapters",
    "read_state",
    "save_checkpoint",
]
