"""The layouts in which restorers lie on a disk or on the hub, in one table."""

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
    """How a restorer's network is loaded; see `Restorer.from_pretrained`."""

    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    backbone: str | Path | None = None
    decoder: str | Path | None = None


@dataclass(frozen=True)
class Found:
    """A restorer that was found, its network not yet loaded."""

    settings: RestorerSettings
    load: Callable[[], OneStepNetwork]
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """One way in which a restorer may lie there."""

    what: str
    """What it is, for people."""
    recognizes: Callable[[Path], bool]
    """Whether a path, or the id of a hub repository, is of this layout."""
    open: Callable[[Path, Options], Found]
    """Read its settings, and refuse what can be refused before the network is loaded."""


def find_restorer(path: Path, options: Options) -> Found:
    """Return the restorer at a path, or in the hub repository, `path`.

    Raises:
        NifiError: if it is of no known layout, or its layout refuses it.
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
        raise NifiError(f"{path} is Difix, which has a network and a decoder of its own: give no backbone or decoder")
    return Found(DIFIX_SETTINGS, lambda: Difix.from_pretrained(path, options.device, options.dtype))


def _with_decoder(backbone: Backbone, options: Options) -> Backbone:
    if options.decoder is not None:
        backbone.use_decoder(options.decoder)
    return backbone


LAYOUTS = (
    Layout(f"a {RESTORER_FILE}, as ns-nifi-train writes it", _is_own, _open_own),
    Layout("a checkpoint of the paper's authors (.ckpt)", is_checkpoint, _open_published),
    Layout("transformer.safetensors and vae.safetensors, as TSD-SR has them", is_tsd_sr, _open_published),
    Layout("a folder or hub id of Difix, such as nvidia/difix", is_difix, _open_difix),
)
"""Every layout, in the order in which they are tried."""
