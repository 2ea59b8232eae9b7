"""Fix: one-step diffusion restoration of degraded views. Knows images and files, nothing of gaussians."""

from nifi_ns.diffusion._backbone import Backbone
from nifi_ns.restore._description import RestorerSettings
from nifi_ns.restore._restorer import Restorer

__all__ = ["Backbone", "Restorer", "RestorerSettings"]
