"""Scene files, `.nifi`: splats to bytes and back. Needs numpy, numba and torch, neither nerfstudio nor a GPU."""

from nifi_ns.compress.codec._codec import decode, encode, info
from nifi_ns.compress.codec._grid import PRESETS, Bits, Grid, grades
from nifi_ns.compress.codec._levels import Ladder, growth
from nifi_ns.compress.codec._quantize import fake_quantize
from nifi_ns.compress.codec._scene import SceneInfo

__all__ = [
    "PRESETS",
    "Bits",
    "Grid",
    "Ladder",
    "SceneInfo",
    "decode",
    "encode",
    "fake_quantize",
    "grades",
    "growth",
    "info",
]
