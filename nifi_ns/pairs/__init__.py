"""Training pairs on disk: degraded views and the photos of the same cameras."""

from nifi_ns.pairs._crops import PairCrops, matching_scenes, split_validation
from nifi_ns.pairs._finding import find_pair_folders, fingerprints
from nifi_ns.pairs._folders import Input, PairFolder, PairWriter, is_current
from nifi_ns.pairs._shards import write_shards

__all__ = [
    "Input",
    "PairCrops",
    "PairFolder",
    "PairWriter",
    "find_pair_folders",
    "fingerprints",
    "is_current",
    "matching_scenes",
    "split_validation",
    "write_shards",
]
