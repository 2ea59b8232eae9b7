"""Networks compiled by torch.compile, and the compiler that this needs."""

import os
import shutil
from collections.abc import Iterable
from typing import Literal

from torch import nn

from nifi_ns.errors import NifiError

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
"""A mode of torch.compile. reduce-overhead makes CUDA graphs, which are bound to the thread they were made in."""


def cxx_compiler() -> str | None:
    """Return the C++ compiler that torch would use, if there is one: $CXX, g++ or clang++."""
    chosen = os.environ.get("CXX")
    return next(filter(shutil.which, [chosen] if chosen else ["g++", "clang++"]), None)


def compile_networks(networks: Iterable[nn.Module], mode: CompileMode) -> None:
    """From now on, compile each of `networks` for each new size of image.

    Raises:
        NifiError: if there is no C++ compiler.
    """
    if cxx_compiler() is None:
        raise NifiError("torch.compile needs a C++ compiler (apt-get install g++), or do not compile")
    for network in networks:
        network.compile(mode=mode)
