"""Nix: compress splats to a few kilobytes and decode them.

Names are imported on first use: nerfstudio imports the settings whenever a command starts, and that must not load
numba.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nifi_ns.compress._budget import chosen_sh_degree
    from nifi_ns.compress._cameras import cameras_around, with_renders
    from nifi_ns.compress._compressor import Compressed, Compressor
    from nifi_ns.compress._finetune import compress, extent, learning_rates
    from nifi_ns.compress._importance import Importance, importance_views, measure_importance
    from nifi_ns.compress._rate import compress_to_loss
    from nifi_ns.compress._settings import CompressionSettings, target_bytes
    from nifi_ns.compress.codec import BITS, Bits, Grid, SceneInfo, decode, encode, fake_quantize, info

__all__ = [
    "BITS",
    "Bits",
    "Compressed",
    "CompressionSettings",
    "Compressor",
    "Grid",
    "Importance",
    "SceneInfo",
    "cameras_around",
    "chosen_sh_degree",
    "compress",
    "compress_to_loss",
    "decode",
    "encode",
    "extent",
    "fake_quantize",
    "importance_views",
    "info",
    "learning_rates",
    "measure_importance",
    "target_bytes",
    "with_renders",
]

_MODULES = {
    "_budget": ("chosen_sh_degree",),
    "_cameras": (
        "cameras_around",
        "with_renders",
    ),
    "_compressor": (
        "Compressed",
        "Compressor",
    ),
    "_finetune": (
        "compress",
        "extent",
        "learning_rates",
    ),
    "_importance": (
        "Importance",
        "measure_importance",
        "importance_views",
    ),
    "_rate": ("compress_to_loss",),
    "_settings": (
        "CompressionSettings",
        "target_bytes",
    ),
    "codec": (
        "BITS",
        "Bits",
        "Grid",
        "SceneInfo",
        "decode",
        "encode",
        "fake_quantize",
        "info",
    ),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
