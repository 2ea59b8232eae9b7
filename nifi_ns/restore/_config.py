"""How a restorer is trained, apart from its losses (`ObjectiveConfig`)."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

from nifi_ns.errors import NifiError
from nifi_ns.restore._description import Decode
from nifi_ns.restore._objective import ObjectiveConfig

TINY_OBJECTIVE = ObjectiveConfig(t0=50, noise_scale=0.0, guidance_scale=1.0, prompt_dropout=0.0, latent=0.1, pixel=60.0)
"""For nifi-tiny: from a start near the identity and without noise, which costs the miniature more than it brings; and
with an eye on pixels, since its latents, made to survive noise, are mostly fine detail."""


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. The defaults are for nifi-tiny; the paper's for SD3 are the preset `sd3`."""

    steps: int = 1000
    """Steps, each an update of phi- and one of phi+."""
    batch_size: int = 4
    """Crops per step, of all processes together."""
    gradient_accumulation: int = 1
    """Parts in which a process works off its crops of a step, one after another: less memory, the same result."""
    gradient_checkpointing: bool = False
    """Whether to compute again, rather than keep, what a backward pass needs: less memory, slower, the same result."""
    crop: int = 96
    """Side of the square crops, in pixels: a multiple of what the backbone asks for (8 for nifi-tiny, 16 for SD3)."""
    attended_photos: int = 0
    """Photos of other cameras that the restorer learns to look at beside each crop, the pairs' most useful ones: each
    step has 0 to so many. One costs the network as much as another crop."""
    lr: float = 5e-3
    """Learning rate of phi-."""
    critic_lr: float = 1e-3
    """Learning rate of phi+."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rates after the warm-up: as they are, or falling to a twentieth along a cosine."""
    warmup_steps: int = 20
    """Steps over which the learning rates rise from zero."""
    optimizer: Literal["adamw", "fused", "adamw8bit"] = "adamw"
    """AdamW; fused: in one kernel, faster on a GPU; adamw8bit: with moments of a quarter of the size, which needs
    bitsandbytes (`pip install bitsandbytes`)."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    ema: float = 0.0
    """Decay per step of a running mean of phi-, such as 0.999, which is then what is evaluated and kept; 0: none."""
    grad_clip: float = 1.0
    """Largest gradient norm of each adapter."""
    rank: int = 16
    """Rank of the adapters."""
    lora_alpha: float = 16.0
    """Scale of the adapters, over their rank."""
    vae_encoder: bool = True
    """Whether phi- also adapts the autoencoder's encoder."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast of the networks; adapters, losses and moments stay float32."""
    seed: int = 0
    """Seed of the adapters, the crops and the noise."""
    rate_weights: dict[str, float] = field(default_factory=dict)
    """How often a rate is drawn, relative to 1 for those not named: `25KB 2.0`."""
    held_out_scenes: tuple[str, ...] = ()
    """Scenes, by name or shell pattern (`'garden*'`), that are not trained on: their training views are the validation
    views, in place of every eighth of each scene's."""
    log_every: int = 10
    """Steps between rows of the loss tables."""
    eval_every: int = 200
    """Steps between evaluations, each with an image."""
    eval_views: int = 12
    """Views per evaluation, of the validation views and of the test views; the last one measures all test views."""
    checkpoint_every: int = 100
    """Steps between checkpoints; evaluations write one too."""
    max_bad_steps: int = 25
    """Updates in a row that may be skipped because a loss or gradient is not finite."""
    choose_by: tuple[str, ...] = ("psnr", "ssim", "ms_ssim", "haarpsi", "gmsd")
    """Metrics by which the best step and the strength are chosen, on validation views."""
    decode: Decode = "change"
    """How restored views are made of restored latents; see `RestorerSettings`."""
    objective: ObjectiveConfig = field(default_factory=lambda: TINY_OBJECTIVE)
    """The losses."""

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "gradient_accumulation", "crop", "rank")
        positive += ("log_every", "eval_every", "eval_views", "checkpoint_every")
        for name in positive:
            if getattr(self, name) < 1:
                raise NifiError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.attended_photos < 0:
            raise NifiError(f"attended_photos: expected 0 or more, got {self.attended_photos}")
        if not 0 <= self.ema < 1:
            raise NifiError(f"ema: expected a decay of 0 or more and below 1, got {self.ema}")
        if self.optimizer == "adamw8bit" and find_spec("bitsandbytes") is None:
            raise NifiError("optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes, or choose another")

    def share(self, processes: int) -> int:
        """Crops per step of each process.

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
