"""Fix: restore degraded views by one-step diffusion. This package works on images and knows nothing of gaussians."""

from nifi_ns.restore._config import TrainingConfig
from nifi_ns.restore._description import RESTORER_FILE, Decode, Description, RestorerSettings, packaged_weights
from nifi_ns.restore._network import OneStepNetwork
from nifi_ns.restore._objective import LossNoise, ObjectiveConfig, critic_loss, restorer_loss
from nifi_ns.restore._restorer import Restorer
from nifi_ns.restore._training import Trainer

__all__ = [
    "RESTORER_FILE",
    "Decode",
    "Description",
    "LossNoise",
    "ObjectiveConfig",
    "OneStepNetwork",
    "Restorer",
    "RestorerSettings",
    "Trainer",
    "TrainingConfig",
    "critic_loss",
    "packaged_weights",
    "restorer_loss",
]
