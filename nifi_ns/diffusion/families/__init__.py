"""The supported families of diffusion backbones, one file each.

A family defines everything that differs between backbones: its folder layout and model classes, its noise schedule, the
scale and shift of its latents, the layers that get adapters, those that attend to photos, and its training preset. To
add one, write a subclass of `Family` in one file and call `register`.
"""

from pathlib import Path

from nifi_ns.diffusion._sources import Source, reading, resolve
from nifi_ns.diffusion.families._family import Family, LatentScaling
from nifi_ns.diffusion.families.sd3 import StableDiffusion3
from nifi_ns.diffusion.families.stable_diffusion import StableDiffusion
from nifi_ns.errors import NifiError

FAMILIES: dict[str, type[Family]] = {}
"""The registered families by name."""


def register(family: type[Family]) -> None:
    """Make backbones of `family` loadable.

    Raises:
        NifiError: if another family has its name, or its network's folder and class.
    """
    for other in FAMILIES.values():
        if family.name == other.name:
            raise NifiError(f"there is a family {family.name!r} already: {other.__qualname__}")
        if (family.component, family.model_class) == (other.component, other.model_class):
            raise NifiError(f"{family.model_class} in {family.component}/ is the family {other.name!r} already")
    FAMILIES[family.name] = family


def family_of(source: Source) -> type[Family]:
    """Return the family of a backbone, from the configuration of its network.

    Raises:
        NifiError: if there is no network, or its family is not registered.
    """
    components = dict.fromkeys(family.component for family in FAMILIES.values())
    component = next((c for c in components if source.has(f"{c}/config.json")), None)
    if component is None:
        expected = " or ".join(f"{c}/" for c in components)
        raise NifiError(f"{source.name} is no diffusers folder: expected {expected}, vae/ and scheduler/")
    config = source.config(f"{component}/config.json")
    model_class = config.get("_class_name")
    for family in FAMILIES.values():
        if (family.component, family.model_class) == (component, model_class):
            if reason := family.unsupported_reason(config):
                raise NifiError(f"{source.name}: {reason}")
            return family
    supported = ", ".join(family.model_class for family in FAMILIES.values())
    raise NifiError(f"{source.name} is a {model_class}: supported are {supported}")


def default_preset(name: str | Path) -> str:
    """Return the name of the training preset for the backbone `name`.

    It is the backbone's own name for a miniature in this package, and its family's preset otherwise.

    Args:
        name: the argument of `Backbone.from_pretrained`; for a hub id, the network's configuration is downloaded.

    Raises:
        NifiError: if it cannot be found or reached, or its family is not registered.
    """
    source = resolve(str(name))
    if source.packaged:
        return Path(source.location).name
    with reading(source.name):
        return family_of(source).preset_of(source)


register(StableDiffusion3)
register(StableDiffusion)

__all__ = [
    "FAMILIES",
    "Family",
    "LatentScaling",
    "StableDiffusion",
    "StableDiffusion3",
    "default_preset",
    "family_of",
    "register",
]
