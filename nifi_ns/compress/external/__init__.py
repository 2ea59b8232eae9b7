"""External codecs: programs in their own environments."""

from nifi_ns.compress.external._command import CommandSettings, command
from nifi_ns.compress.external._external import ExternalCodec, find_pictures, read_log, run
from nifi_ns.compress.external._hacpp import HacppSettings, hacpp

__all__ = [
    "CommandSettings",
    "ExternalCodec",
    "HacppSettings",
    "command",
    "find_pictures",
    "hacpp",
    "read_log",
    "run",
]
