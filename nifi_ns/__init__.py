"""NiFi for Nerfstudio: Nix compresses gaussian splats to kilobytes, Fix repairs their renders.

    import nifi_ns

    splats = nifi_ns.load_splats("garden.ply")              # or .spz, .splat, .sog, .compressed.ply
    data = nifi_ns.encode(splats, nifi_ns.BITS["mid"])   # a scene file; ns-nifi-compress makes smaller ones
    print(nifi_ns.info(data))
    nifi_ns.save_splats("again.ply", nifi_ns.decode(data))
    restorer = nifi_ns.Restorer.from_pretrained("outputs/garden/nifi-splat/1/nifi/restorer")
    restored = restorer(image)                              # [H, W, 3] in [0, 1], or uint8

The names in `__all__` are stable: until version 1.0, changes are announced in CHANGELOG.md; after it, no change breaks
callers. Names in subpackages may change with any version. Scene files of version 1 can always be read.

Names are imported on first use: `encode`, `decode` and `info` need only numpy, numba and torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nifi_ns.compress import BITS, SceneInfo, decode, encode, info
    from nifi_ns.errors import NifiError
    from nifi_ns.formats import load as load_splats
    from nifi_ns.formats import save as save_splats
    from nifi_ns.restore import Restorer, RestorerSettings
    from nifi_ns.splats import Splats

__version__ = "0.1.0"

__all__ = [
    "BITS",
    "NifiError",
    "Restorer",
    "RestorerSettings",
    "SceneInfo",
    "Splats",
    "__version__",
    "decode",
    "encode",
    "info",
    "load_splats",
    "save_splats",
]

_PLACES = {
    "BITS": "compress.codec:BITS",
    "NifiError": "errors:NifiError",
    "Restorer": "restore:Restorer",
    "RestorerSettings": "restore:RestorerSettings",
    "SceneInfo": "compress.codec:SceneInfo",
    "Splats": "splats:Splats",
    "decode": "compress.codec:decode",
    "encode": "compress.codec:encode",
    "info": "compress.codec:info",
    "load_splats": "formats:load",
    "save_splats": "formats:save",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
