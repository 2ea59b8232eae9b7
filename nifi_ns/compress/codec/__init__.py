"""The codec of scene files, `.nifi`: splats to bytes and back. It needs only numpy, numba and torch, and no GPU."""

from nifi_ns.compress.codec._codec import decode, encode, info
from nifi_ns.compress.codec._grid import BITS, Bits, Grid, precision_classes
from nifi_ns.compress.codec._lod import LevelsOfDetail, growth
from nifi_ns.compress.codec._quantize import fake_quantize
from nifi_ns.compress.codec._scene import SceneInfo

__all__ = [
    "BITS",
    "Bits",
    "Grid",
    "LevelsOfDetail",
    "SceneInfo",
    "decode",
    "encode",
    "fake_quantize",
    "growth",
    "info",
    "precision_classes",
]
