"""Reference residuals: photos repair what a render of the same scene gets wrong, by depth and without learning."""

from nifi_ns.references._bank import ReferenceBank, ReferenceSettings, Renderer
from nifi_ns.references._consistency import FRAME, consistency
from nifi_ns.references._nearest import TRANSFORMS_FILE, NearestPhotos, read_poses
from nifi_ns.references._stereo import box_mean, hwc

__all__ = [
    "FRAME",
    "TRANSFORMS_FILE",
    "NearestPhotos",
    "ReferenceBank",
    "ReferenceSettings",
    "Renderer",
    "box_mean",
    "consistency",
    "hwc",
    "read_poses",
]
