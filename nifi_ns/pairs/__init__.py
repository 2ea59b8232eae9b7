"""Pairs on disk: degraded views beside the photos of the same cameras, which restorers are trained on."""

from nifi_ns.pairs._crops import PairCrops, held_out_scenes, split_validation
from nifi_ns.pairs._finding import find_pair_folders, fingerprints
from nifi_ns.pairs._folders import Inputs, PairFolder, PairWriter, Split, is_current
from nifi_ns.pairs._shards import write_shards

__all__ = [
    "Inputs",
    "PairCrops",
    "PairFolder",
    "PairWriter",
    "Split",
    "find_pair_folders",
    "fingerprints",
    "held_out_scenes",
    "is_current",
    "split_validation",
    "write_shards",
]
