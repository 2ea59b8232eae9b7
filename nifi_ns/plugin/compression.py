"""The compression stage of training: Nix's schedule, driven by nerfstudio's trainer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from nifi_ns.plugin.model import NifiSplatModel


@dataclass
class CompressionStageConfig:
    """When training compresses, and into how much."""

    enabled: bool = False
    start_step: int = 0
    steps: int = 0
    target_size: str = ""


class CompressionStage:
    running = False

    def __init__(self, config: CompressionStageConfig, model: "NifiSplatModel") -> None:
        pass

    def quantized_params(self) -> dict[str, Tensor] | None:
        return None

    def callbacks(self, trainer: Any) -> list:
        return []
