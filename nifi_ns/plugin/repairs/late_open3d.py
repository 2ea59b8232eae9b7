"""`ns-process-data` and `ns-export` import open3d at start, which fails on a machine without libusb, libGL and libX11.

Most of their work does not need open3d. Both import it before nerfstudio loads any plugin, so no plugin can repair the
commands themselves. `ns-nifi-process-data` and `ns-nifi-export` install this repair and then run them.
Upstream: nerfstudio issue 3712 requests the same for pymeshlab; PR 3347 did it for one data parser.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _LazyModule(ModuleType):
    """Replaces a module until one of its names is accessed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # accessed on every module by `inspect` and `import`
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def install() -> None:
    """Delay importing open3d until it is used, in this process. An import error occurs at that time."""
    sys.modules.setdefault("open3d", _LazyModule("open3d"))
