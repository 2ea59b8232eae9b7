"""Compilation of networks with torch.compile, and the C++ compiler it needs."""

import os
import shutil
from collections.abc import Iterable
from typing import Literal

from torch import nn

from nifi_ns.errors import NifiError

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
"""A mode of torch.compile. reduce-overhead makes CUDA graphs, which work only in the thread that made them."""


def cxx_compiler() -> str | None:
    """Return the C++ compiler that torch would use ($CXX, g++ or clang++); None if there is none."""
    chosen = os.environ.get("CXX")
    return next(filter(shutil.which, [chosen] if chosen else ["g++", "clang++"]), None)


def compile_networks(networks: Iterable[nn.Module], mode: CompileMode) -> None:
    """Compile each of `networks` for each new image size from now on.

    Raises:
        NifiError: if there is no C++ compiler.
    """
    if cxx_compiler() is None:
        raise NifiError("torch.compile needs a C++ compiler: install one (apt-get install g++), or do not compile")
    for network in networks:
        network.compile(mode=mode)
