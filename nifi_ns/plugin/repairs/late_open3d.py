"""`ns-process-data` and `ns-export` import open3d at once, which fails on a machine without libusb, libGL and libX11.

Most of what they do does not need it. Both import open3d before nerfstudio loads any plugin, so that no plugin can
repair the commands themselves: `ns-nifi-process-data` and `ns-nifi-export` install this repair and then run them.
Upstream: nerfstudio issue 3712 asks for the same of pymeshlab; PR 3347 made it for one data parser.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Late(ModuleType):
    """Stands in for a module until somebody asks for one of its names."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # asked of every module by `inspect`, and by `import`
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def install() -> None:
    """Put off importing open3d until it is used, in this process; it then fails as it would have failed before."""
    sys.modules.setdefault("open3d", _Late("open3d"))
