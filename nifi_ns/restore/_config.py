"""How a restorer is trained, apart from its losses (`ObjectiveConfig`).

The defaults are the paper's training of Stable Diffusion 3, but for what needs a download or a large GPU: the paper's
perceptual loss is LPIPS, as the preset sd3 has it, which also trains in bfloat16. Each backbone has a preset.
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
    """What the restorer is shown."""

    crop: int = 512
    """Side of the square crops, in pixels: a multiple of what the backbone asks for (8 for nifi-tiny, 16 for SD3)."""
    attended_photos: int = 0
    """Photos of other cameras that the restorer learns to look at beside each crop, the pairs' most useful ones: each
    step has 0 to so many. One costs the network as much as another crop."""
    rate_weights: dict[str, float] = field(default_factory=dict)
    """How often a rate is drawn, relative to 1 for those not named: `25KB 2.0`."""
    validation_scenes: tuple[str, ...] = ()
    """Scenes, by name or shell pattern (`'garden*'`), that are not trained on: their training views are the validation
    views, in place of every eighth of each scene's."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "crop")
        _at_least(self, 0, "attended_photos")


@dataclass(frozen=True)
class AdapterConfig:
    """The LoRA adapters."""

    rank: int = 64
    """Rank of the adapters."""
    lora_alpha: float = 64.0
    """Scale of the adapters, over their rank."""
    vae_encoder: bool = True
    """Whether phi- also adapts the autoencoder's encoder."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "rank")


@dataclass(frozen=True)
class EvaluationConfig:
    """When it is measured, logged and saved, and how the best step is chosen."""

    log_every: int = 50
    """Steps between rows of the loss tables."""
    eval_every: int = 2000
    """Steps between evaluations, each with an image."""
    eval_views: int = 12
    """Views per evaluation, of the validation views and of the test views; the last one measures all test views."""
    checkpoint_every: int = 500
    """Steps between checkpoints; evaluations write one too."""
    choose_by: tuple[str, ...] = REFERENCE_METRICS
    """Metrics by which the best step and the strength are chosen, on validation views."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "log_every", "eval_every", "eval_views", "checkpoint_every")


@dataclass(frozen=True)
class TrainingConfig:
    """How to train."""

    steps: int = 60_000
    """Steps, each an update of phi- and one of phi+."""
    batch_size: int = 4
    """Crops per step, of all processes together."""
    gradient_accumulation: int = 1
    """Parts in which a process works off its crops of a step, one after another: less memory, the same result."""
    gradient_checkpointing: bool = False
    """Whether to compute again, rather than keep, what a backward pass needs: less memory, slower, the same result."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast of the networks; adapters, losses and moments stay float32."""
    seed: int = 0
    """Seed of the adapters, the crops and the noise."""
    max_bad_steps: int = 25
    """Updates in a row that may be skipped because a loss or gradient is not finite."""
    decode: Decode = "change"
    """How restored views are made of restored latents; see `RestorerSettings`."""
    data: DataConfig = field(default_factory=DataConfig)
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    optimization: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def __post_init__(self) -> None:
        _at_least(self, 1, "steps", "batch_size", "gradient_accumulation")

    def with_options(self, **options: Any) -> "TrainingConfig":
        """Return a copy with other values of some options, each in whichever group has it.

        Raises:
            TypeError: if there is no such option.
            NifiError: if a value does not fit.
        """
        changed = _with_options(self, options)
        if options:
            raise TypeError(f"there is no training option {next(iter(options))!r}")
        return changed

    def options(self) -> dict[str, Any]:
        """Return all values by the options' names, which are unique over the groups."""
        return _options(self)

    def batch_per_process(self, processes: int) -> int:
        """Return the crops per step of each process.

        Raises:
            NifiError: if that is no whole number of crops in each of its parts.
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
    """Takes from `options` what `config` and its groups have."""
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
