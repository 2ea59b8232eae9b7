"""Training options of a restorer, except its losses (`ObjectiveConfig`).

The defaults follow the paper's training of Stable Diffusion 3, except where that needs a download or a large GPU: the
paper's perceptual loss is LPIPS. The preset sd3 uses LPIPS and trains in bfloat16. Each backbone has a preset.
"""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from nifi_ns.errors import NifiError
from nifi_ns.learning import OptimizerConfig
from nifi_ns.metrics import REFERENCE_METRICS
from nifi_ns.restore._description import Decode
from nifi_ns.restore._objective import ObjectiveConfig


@dataclass(frozen=True)
class DataConfig:
    """Training data."""

    crop: int = 512
    """Side of the square crops in pixels, a multiple of 8 for nifi-tiny and of 16 for SD3."""
    attended_photos: int = 0
    """Maximum number of photos of other cameras that the restorer attends to for each crop, the most useful ones
    first. Each step draws a number from 0 to this. Each photo costs the network as much as another crop."""
    rate_weights: dict[str, float] = field(default_factory=dict)
    """How often each rate is drawn, relative to 1 for rates not listed: `25KB 2.0`."""
    validation_scenes: tuple[str, ...] = ()
    """Scenes, by name or shell pattern (`'garden*'`), to hold out from training. Their training views become the
    validation views, instead of every eighth training view of every scene."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "crop")
        _at_least(self, 0, "attended_photos")


@dataclass(frozen=True)
class AdapterConfig:
    """The LoRA adapters."""

    rank: int = 64
    """Rank of the adapters."""
    lora_alpha: float = 64.0
    """Scale of the adapters, divided by the rank."""
    vae_encoder: bool = True
    """Whether phi- also adapts the autoencoder's encoder."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "rank")


@dataclass(frozen=True)
class EvaluationConfig:
    """When to evaluate, log and save, and how to choose the best step."""

    log_every: int = 50
    """Steps between rows of the loss tables."""
    eval_every: int = 2000
    """Steps between evaluations. Each writes an image."""
    eval_views: int = 12
    """Validation views and test views per evaluation. At the end all test views are measured."""
    checkpoint_every: int = 500
    """Steps between checkpoints. Evaluations also write one."""
    choose_by: tuple[str, ...] = REFERENCE_METRICS
    """Metrics on validation views that choose the best step and the strength."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "log_every", "eval_every", "eval_views", "checkpoint_every")


@dataclass(frozen=True)
class TrainingConfig:
    """All training options."""

    steps: int = 60_000
    """Training steps. Each updates phi- once and phi+ once."""
    batch_size: int = 4
    """Crops per step over all processes."""
    gradient_accumulation: int = 1
    """Number of parts that a process splits its crops of a step into. More parts use less memory for the same
    result."""
    gradient_checkpointing: bool = False
    """Whether to recompute activations in the backward pass: less memory, slower, the same result."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast precision of the networks. Adapters, losses and moments stay float32."""
    seed: int = 0
    """Seed for the adapters, the crops and the noise."""
    max_bad_steps: int = 25
    """Consecutive updates with a loss or gradient that is not finite before training stops."""
    decode: Decode = "change"
    """How restored latents become restored views; see `RestorerSettings`."""
    data: DataConfig = field(default_factory=DataConfig)
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    optimization: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def __post_init__(self) -> None:
        _at_least(self, 1, "steps", "batch_size", "gradient_accumulation")

    def with_options(self, **options: Any) -> "TrainingConfig":
        """Return a copy with some options changed. Each option is found in its group.

        Raises:
            TypeError: if an option does not exist.
            NifiError: if a value is out of range.
        """
        changed = _with_options(self, options)
        if options:
            raise TypeError(f"no training option {next(iter(options))!r}")
        return changed

    def options(self) -> dict[str, Any]:
        """Return all values by option name. Names are unique across the groups."""
        return _options(self)

    def batch_per_process(self, processes: int) -> int:
        """Return the number of crops per step for each process.

        Raises:
            NifiError: if the crops cannot be split evenly over the processes and their parts.
        """
        parts = processes * self.gradient_accumulation
        if self.batch_size % parts:
            raise NifiError(
                f"batch_size {self.batch_size}: {processes} processes with gradient_accumulation "
                f"{self.gradient_accumulation} need a multiple of {parts}"
            )
        return self.batch_size // processes


def _options(config: Any) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for each in fields(config):
        value = getattr(config, each.name)
        options |= _options(value) if is_dataclass(value) else {each.name: value}
    return options


def _with_options(config: Any, options: dict[str, Any]) -> Any:
    """Remove the options of `config` and its groups from `options`, and return `config` with them applied."""
    changes = {each.name: options.pop(each.name) for each in fields(config) if each.name in options}
    groups = {each.name: getattr(config, each.name) for each in fields(config)}
    changes |= {
        name: _with_options(group, options)
        for name, group in groups.items()
        if is_dataclass(group) and name not in changes
    }
    return replace(config, **changes)


def _at_least(config: object, least: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < least:
            raise NifiError(f"{name}: expected at least {least}, got {getattr(config, name)}")
