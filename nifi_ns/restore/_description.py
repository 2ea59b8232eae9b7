"""restorer.json: the settings of a restorer, and the checksums of the files beside it."""

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
    """How a restorer was trained and how its result is shown. Stored in restorer.json."""

    t0: float = 199
    """Timestep that the single step starts from, in [0, 1000]."""
    noise_scale: float = 1.0
    """Scale of the noise added at t0. The paper uses 1; 0 adds none."""
    strength: float = 1.0
    """Blend of input and restoration: 0 is exactly the input, 1 the full restoration."""
    decode: Decode = "change"
    """change: `image + D(z_hat) - D(E(image))`, which cancels the autoencoder's loss of detail; full: `D(z_hat)`."""
    attended_photos: int = 0
    """Photos of other cameras it was trained to attend to. More or fewer may be passed."""
    input: Input = "degraded"
    """Training input: plain renders ("degraded") or renders corrected with reference photos ("referenced")."""
    seed: int = 0
    """Seed of the noise. All images of one size get the same noise, so that frames do not flicker."""

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
    """The content of restorer.json. `read` checks the files beside it, `check_backbone` the backbone."""

    version: int
    backbone: str
    family: str
    prompt: str
    settings: RestorerSettings
    training: dict[str, Any]
    files: dict[str, str]
    """SHA-256 of the files beside it, by name."""
    weights: str | None = None
    """`packaged_weights` of the backbone; None if it is not part of this package or was not recorded."""

    def check_backbone(self, name: str | Path, directory: Path) -> None:
        """Refuse a packaged backbone with other weights than the adapters in `directory` were trained on.

        Raises:
            NifiError: if the packaged backbone `name` has other weights.
        """
        if self.weights is not None and packaged_weights(str(name)) not in (None, self.weights):
            raise NifiError(
                f"{directory} was trained on another {name} than this version's: train it again, or give the folder "
                "of that backbone"
            )

    def write(self, directory: Path) -> None:
        """Write restorer.json atomically."""
        write_text(directory / RESTORER_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def read(directory: Path) -> "Description":
        """Read restorer.json and check the files that it lists.

        Raises:
            NifiError: if restorer.json or a listed file is missing, or restorer.json has another version.
            CorruptFileError: if one of them is damaged.
        """
        path = directory / RESTORER_FILE
        if not path.is_file():
            raise NifiError(f"no restorer in {directory}: expected a {RESTORER_FILE} written by ns-nifi-train")
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
                        f"{directory / name} is damaged or belongs to another training than {RESTORER_FILE}"
                    )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFileError(f"{path} is damaged: {error}") from error
        return about


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def packaged_weights(backbone: str) -> str | None:
    """Return the SHA-256 of the weights of a backbone in this package; None for any other backbone."""
    files = sorted((WEIGHTS / backbone).glob("*/*.safetensors")) if "/" not in backbone else []
    return hashlib.sha256("".join(map(checksum, files)).encode()).hexdigest() if files else None
