"""The supported layouts of restorers on disk and on the hub."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nifi_ns.diffusion import PROMPT_FILE, Backbone, Prompt
from nifi_ns.errors import NifiError
from nifi_ns.restore._description import RESTORER_FILE, Description, RestorerSettings
from nifi_ns.restore._difix import DIFIX_SETTINGS, Difix, is_difix
from nifi_ns.restore._network import OneStepNetwork
from nifi_ns.restore._published import PUBLISHED_SETTINGS, Published, is_checkpoint, is_tsd_sr


@dataclass(frozen=True)
class Options:
    """Options for loading a restorer's network; see `Restorer.from_pretrained`."""

    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    backbone: str | Path | None = None
    decoder: str | Path | None = None


@dataclass(frozen=True)
class Found:
    """A restorer whose network is not loaded yet."""

    settings: RestorerSettings
    load: Callable[[], OneStepNetwork]
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """One layout of a restorer."""

    what: str
    """Description for error messages."""
    recognizes: Callable[[Path], bool]
    """Return whether a path or hub id has this layout."""
    open: Callable[[Path, Options], Found]
    """Read the settings, and check what can be checked before the network is loaded."""


def find_restorer(path: Path, options: Options) -> Found:
    """Return the restorer at `path`, a path or hub id.

    Raises:
        NifiError: if the layout is unknown, or the restorer is incomplete or damaged.
    """
    for layout in LAYOUTS:
        if layout.recognizes(path):
            return layout.open(path, options)
    raise NifiError(f"no restorer in {path}: expected {', or '.join(layout.what for layout in LAYOUTS)}")


def _is_own(path: Path) -> bool:
    return (path / RESTORER_FILE).is_file()


def _open_own(path: Path, options: Options) -> Found:
    about = Description.read(path)
    name = options.backbone or about.backbone
    about.check_backbone(name, path)

    def load() -> OneStepNetwork:
        backbone = Backbone.from_pretrained(name, options.device, options.dtype, Prompt.load(path / PROMPT_FILE))
        if backbone.family.name != about.family:
            raise NifiError(
                f"{path} is for {about.backbone} ({about.family}), not {backbone.name} ({backbone.family.name})"
            )
        backbone.load_adapter(path, "phi_minus")
        return _with_decoder(backbone, options)

    return Found(about.settings, load, about.training)


def _open_published(path: Path, options: Options) -> Found:
    published = Published.read(path)

    def load() -> OneStepNetwork:
        return _with_decoder(published.load(options.device, options.dtype, options.backbone), options)

    return Found(PUBLISHED_SETTINGS, load)


def _open_difix(path: Path, options: Options) -> Found:
    if options.backbone is not None or options.decoder is not None:
        raise NifiError(f"{path} is Difix, which has its own network and decoder: give no backbone or decoder")
    return Found(DIFIX_SETTINGS, lambda: Difix.from_pretrained(path, options.device, options.dtype))


def _with_decoder(backbone: Backbone, options: Options) -> Backbone:
    if options.decoder is not None:
        backbone.use_decoder(options.decoder)
    return backbone


LAYOUTS = (
    Layout(f"a {RESTORER_FILE} written by ns-nifi-train", _is_own, _open_own),
    Layout("a checkpoint of the paper's authors (.ckpt)", is_checkpoint, _open_published),
    Layout("TSD-SR's transformer.safetensors and vae.safetensors", is_tsd_sr, _open_published),
    Layout("a folder or hub id of Difix, such as nvidia/difix", is_difix, _open_difix),
)
"""All layouts in the order they are tried."""
