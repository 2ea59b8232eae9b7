"""The definition of a family of diffusion backbones."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nifi_ns.diffusion._cross_view import CrossViewAttention
from nifi_ns.diffusion._prompt import Embeddings, Prompt
from nifi_ns.diffusion._schedules import Schedule
from nifi_ns.diffusion._sources import Source


@dataclass(frozen=True)
class LatentScaling:
    """Scaling of an autoencoder's latents for its diffusion network: `(latents - shift) * scale`."""

    scale: float
    """Scales latents to about unit variance: `scaling_factor` of the autoencoder's configuration."""
    shift: float
    """Mean to subtract from latents: `shift_factor` of the autoencoder's configuration, or 0 for none."""

    def apply(self, latents: Tensor) -> Tensor:
        """Scale the output of the autoencoder's encoder, of any shape."""
        return (latents - self.shift) * self.scale

    def undo(self, latents: Tensor) -> Tensor:
        """Convert scaled latents of any shape to the input of the autoencoder's decoder."""
        return latents / self.scale + self.shift


class Family(ABC):
    """A frozen network with its noise schedule, and everything specific to one family of backbones.

    To add a family, write a subclass in a file of its own and `register` it. The class attributes define where the
    models are in its diffusers folders and which of their layers matter. `__call__` runs the network.
    """

    name: ClassVar[str]
    """Its name in restorer.json."""
    component: ClassVar[str]
    """Subfolder of the network in a diffusers folder, and prefix of its LoRA keys in `load_lora_weights`."""
    model_class: ClassVar[str]
    """The network's class in diffusers, named by `config.json` in that subfolder."""
    vae_class: ClassVar[str] = "AutoencoderKL"
    """Class of the autoencoder in the subfolder `vae`; its encoder returns a `latent_dist`."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Endings of the names of the network's layers that get adapters."""
    vae_lora_targets: ClassVar[str] = (
        r"(encoder\.(.*\.)?(conv(1|2|_in|_out|_shortcut)?|to_q|to_k|to_v|to_out\.0)|quant_conv)"
    )
    """Regular expression for whole names of the autoencoder's layers that get adapters. The default follows the paper's
    code: every convolution of the encoder, its attention and quant_conv, and nothing in the decoder."""
    self_attention: ClassVar[tuple[str, ...]]
    """Last parts of the names of the self-attention layers between pixels, which can also attend to photos."""
    default_preset: ClassVar[str]
    """Name of the training preset for this family."""

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        self.network: Any = network
        self.schedule = schedule
        self._cross_view = CrossViewAttention(network, self.self_attention)

    @classmethod
    def load(cls, source: Source, dtype: torch.dtype) -> "Family":
        """Load network and schedule from a diffusers folder or the hub."""
        import diffusers

        model: Any = getattr(diffusers, cls.model_class)
        network = model.from_pretrained(
            source.location, subfolder=cls.component, torch_dtype=dtype, use_safetensors=True
        )
        return cls(network, cls.read_schedule(source.config("scheduler/scheduler_config.json")))

    @classmethod
    def unsupported_reason(cls, config: Mapping[str, Any]) -> str | None:
        """Return why a network of `model_class` with this configuration is not supported; None if it is."""
        return None

    @classmethod
    def preset_of(cls, source: Source) -> str:
        """Return the name of the training preset for the backbone in `source`."""
        return cls.default_preset

    @classmethod
    @abstractmethod
    def read_schedule(cls, config: dict[str, Any]) -> Schedule:
        """Return the noise schedule described by `scheduler_config.json`."""

    @classmethod
    def latent_scaling(cls, vae: Any) -> LatentScaling:
        """Return scale and shift of the latents, given the autoencoder's configuration.

        The default is that configuration's own values, like diffusers' pipelines.
        """
        return LatentScaling(vae.scaling_factor, getattr(vae, "shift_factor", None) or 0.0)

    @abstractmethod
    def encode_prompt(self, source: Source, text: str) -> Prompt:
        """Return embeddings of `text` and of the null prompt from the text encoders of `source`."""

    @abstractmethod
    def __call__(self, x_t: Tensor, timestep: Tensor, prompt: Embeddings) -> Tensor:
        """Return the network's raw output [B, C, h, w] for latents x_t [B, C, h, w] at `timestep` [B]."""

    @property
    @abstractmethod
    def latent_multiple(self) -> int:
        """Latent sides must be multiples of this."""

    @property
    def max_latent_side(self) -> int | None:
        """Largest latent side that the network accepts; None for no limit."""
        return None

    @property
    def num_views(self) -> int:
        """Number of views that self-attention attends across now."""
        return self._cross_view.num_views

    def attend_across(self, num_views: int) -> AbstractContextManager[None]:
        """Let self-attention attend across `num_views` consecutive samples of a batch within the block.

        Not thread-safe.
        """
        return self._cross_view.across(num_views)
