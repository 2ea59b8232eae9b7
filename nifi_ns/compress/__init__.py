"""Nix: splats to a few kilobytes and back.

What is listed here is imported when it is first used: nerfstudio imports the settings at every start of a command, and
the codec's compiler is not needed for that.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nifi_ns.compress._compressor import Compressed, Compressor
    from nifi_ns.compress._finetune import compress
    from nifi_ns.compress._settings import CompressionSettings
    from nifi_ns.compress.codec._codec import SceneInfo, decode, encode, info
    from nifi_ns.compress.codec._grid import PRESETS, Bits, Grid
    from nifi_ns.compress.codec._quantize import fake_quantize

__all__ = [
    "PRESETS",
    "Bits",
    "Compressed",
    "CompressionSettings",
    "Compressor",
    "Grid",
    "SceneInfo",
    "compress",
    "decode",
    "encode",
    "fake_quantize",
    "info",
]

_MODULES = {
    "codec": ("SceneInfo", "decode", "encode", "info"),
    "compressor": ("Compressed", "Compressor"),
    "finetune": ("compress",),
    "grid": ("PRESETS", "Bits", "Grid"),
    "quantize": ("fake_quantize",),
    "settings": ("CompressionSettings",),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
