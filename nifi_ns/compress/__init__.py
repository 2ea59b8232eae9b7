"""Nix: splats to a few kilobytes and back."""

from nifi_ns.compress.codec import SceneInfo, decode, encode, info
from nifi_ns.compress.quantize import PRESETS, Bits, Grid, fake_quantize

__all__ = ["PRESETS", "Bits", "Grid", "SceneInfo", "decode", "encode", "fake_quantize", "info"]
