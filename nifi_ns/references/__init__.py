"""Reference residuals: photos correct renders of the same scene, by depth and without learning.

Start with `ReferenceBank`: it turns photos into residuals, and corrects a render of a new view by them.
"""

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
