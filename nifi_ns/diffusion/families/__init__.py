"""The families of diffusion backbones that are known, one file each.

A family says everything that differs between backbones: which folders and model classes are its own, its noise
schedule, scale and shift of its latents, which layers get adapters, which attend to photos, and the preset to train it
with. Another one needs a subclass of `Family` in one file and a call of `register`.
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
    """Let backbones of `family` be loaded.

    Raises:
        NifiError: if its name, or its network's folder and class, are another family's.
    """
    for other in FAMILIES.values():
        if family.name == other.name:
            raise NifiError(f"there is a family {family.name!r} already: {other.__qualname__}")
        if (family.component, family.model_class) == (other.component, other.model_class):
            raise NifiError(f"{family.model_class} in {family.component}/ is the family {other.name!r} already")
    FAMILIES[family.name] = family


def family_of(source: Source) -> type[Family]:
    """Return the family of the backbone in a diffusers folder or hub repository, by its network's configuration.

    Raises:
        NifiError: if there is no network, or it is of no registered family.
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
            if refused := family.refusal(config):
                raise NifiError(f"{source.name}: {refused}")
            return family
    supported = ", ".join(family.model_class for family in FAMILIES.values())
    raise NifiError(f"{source.name} is a {model_class}: supported are {supported}")


def default_preset(name: str | Path) -> str:
    """Return the name of the training preset that is right for the backbone `name`.

    That is the backbone's own name for a miniature that comes with this package, and otherwise its family's preset.

    Args:
        name: what `Backbone.from_pretrained` takes; of a hub id the network's configuration is downloaded.

    Raises:
        NifiError: if it cannot be found or reached, or is of no registered family.
    """
    source = resolve(str(name))
    if source.packaged:
        return Path(source.location).name
    with reading(source.name):
        return family_of(source).default_preset


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
