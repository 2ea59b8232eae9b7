"""Parts of a training loop: optimizers, checkpoints, processes and logs."""

from nifi_ns.learning import processes
from nifi_ns.learning._checkpoints import (
    checkpoint_to_write,
    load_optimizers,
    read_adapters,
    read_state,
    save_checkpoint,
)
from nifi_ns.learning._logs import TrainingLog, comparison_grid
from nifi_ns.learning._optimizer import AdapterOptimizer, OptimizerConfig, averaged, make_optimizer

__all__ = [
    "AdapterOptimizer",
    "OptimizerConfig",
    "TrainingLog",
    "averaged",
    "checkpoint_to_write",
    "comparison_grid",
    "load_optimizers",
    "make_optimizer",
    "processes",
    "read_adapters",
    "read_state",
    "save_checkpoint",
]
