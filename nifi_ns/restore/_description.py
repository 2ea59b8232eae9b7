"""restorer.json: what a restorer was trained for, and the checksums of the files that go with it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from nifi_ns.diffusion import WEIGHTS
from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import write_text
from nifi_ns.pairs import Input

VERSION = 1
RESTORER_FILE = "restorer.json"
Decode = Literal["change", "full"]


@dataclass(frozen=True)
class RestorerSettings:
    """What a restorer was trained for, and how it is shown; kept in restorer.json."""

    t0: float = 199
    """Timestep, of 1000, that the one step starts from."""
    noise_scale: float = 1.0
    """Scale of the noise added at t0: 1 is the paper's, 0 restores without noise."""
    strength: float = 1.0
    """Share of the change that is shown: 0 is the input exactly, 1 the restoration."""
    decode: Decode = "change"
    """change: `image + D(z_hat) - D(E(image))`, which cancels what the autoencoder loses; full: `D(z_hat)`."""
    attended_photos: int = 0
    """How many photos of other cameras it was trained to look at; more or fewer may be given."""
    input: Input = "degraded"
    """What it was trained on: plain renders, or views already restored by reference photos."""
    seed: int = 0
    """Seed of the noise, which is the same for every image of a size, so that frames do not flicker."""

    def __post_init__(self) -> None:
        for name, allowed in (("decode", get_args(Decode)), ("input", get_args(Input))):
            if getattr(self, name) not in allowed:
                raise NifiError(f"{name} is {getattr(self, name)!r}: expected {' or '.join(allowed)}")
        if self.attended_photos < 0:
            raise NifiError(f"attended_photos is {self.attended_photos}: expected 0 or more")
        if not (0 <= self.t0 <= 1000 and self.noise_scale >= 0 and 0 <= self.strength <= 1):
            values = f"t0 {self.t0}, noise_scale {self.noise_scale}, strength {self.strength}"
            raise NifiError(f"{values}: expected t0 in [0, 1000], noise_scale of 0 or more and strength in [0, 1]")


@dataclass(frozen=True)
class Description:
    """What restorer.json says. `read` checks it against the files beside it, `check_backbone` against a backbone."""

    version: int
    backbone: str
    family: str
    prompt: str
    settings: RestorerSettings
    training: dict[str, Any]
    files: dict[str, str]
    """Checksums of the files beside it, by name."""
    weights: str | None = None
    """`packaged_weights` of the backbone; None if it did not come with this package, or was not noted."""

    def check_backbone(self, name: str | Path, directory: Path) -> None:
        """Refuse another nifi-tiny than the adapters in `directory` were trained on.

        Raises:
            NifiError: if the backbone `name` is one.
        """
        if self.weights is not None and packaged_weights(str(name)) not in (None, self.weights):
            raise NifiError(
                f"{directory} was trained on another {name} than this version's: train it anew, or give the folder of "
                "its own as the backbone"
            )

    def write(self, directory: Path) -> None:
        """Write restorer.json, whole or not at all."""
        write_text(directory / RESTORER_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def read(directory: Path) -> "Description":
        """Read restorer.json, and check that the files it names are there and whole.

        Raises:
            NifiError: if it or one of them is missing, damaged (CorruptFileError) or of another version.
        """
        path = directory / RESTORER_FILE
        if not path.is_file():
            raise NifiError(f"no restorer in {directory}: expected a {RESTORER_FILE}, as ns-nifi-train writes it")
        try:
            values = json.loads(path.read_text())
            if values["version"] != VERSION:
                raise NifiError(f"{path} has version {values['version']}, this program reads {VERSION}: train again")
            values["settings"] = RestorerSettings(**values["settings"])
            about = Description(**values)
            for name, known in about.files.items():
                if not (directory / name).is_file():
                    raise NifiError(f"{directory} is incomplete: {name} is missing")
                if checksum(directory / name) != known:
                    raise CorruptFileError(
                        f"{directory / name} is damaged, or of another training than {RESTORER_FILE}"
                    )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFileError(f"{path} is damaged: {error}") from error
        return about


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def packaged_weights(backbone: str) -> str | None:
    """Return the SHA-256 of the weights of a backbone that comes with this package; None for another."""
    files = sorted((WEIGHTS / backbone).glob("*/*.safetensors")) if "/" not in backbone else []
    return hashlib.sha256("".join(map(checksum, files)).encode()).hexdigest() if files else None
