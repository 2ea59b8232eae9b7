"""`ns-nifi-compress hacpp` and `command`: pairs and results of external codecs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes

from nifi_ns.compress.external import CommandSettings, ExternalCodec, HacppSettings, command, hacpp
from nifi_ns.errors import NifiError

if TYPE_CHECKING:
    from torch import Tensor

    from nifi_ns.pairs import PairFolder
    from nifi_ns.results import Row
    from nifi_ns.views import Split

    Pictures = dict[Split, dict[str, tuple[Path, Path]]]

VERSION = 2
"""Increased whenever the same files would give different pairs."""


@dataclass(kw_only=True)
class Hacpp:
    """Run a checkout of HAC++ in its own environment, and write pairs of its renders and results."""

    data: Path
    """A COLMAP scene: a folder with images/ and sparse/0/."""
    output: Path | None = None
    """The output folder; by default outputs/<scene>/hacpp/<lmbda>."""
    hacpp: Annotated[HacppSettings, OmitArgPrefixes] = field(default_factory=HacppSettings)
    """How to run HAC++."""

    def main(self) -> None:
        """Run HAC++ unless it has finished, then write its pairs and results."""
        output = self.output or _default_output(self.data, "hacpp", f"{self.hacpp.lmbda:g}")
        compress_externally(hacpp(self.hacpp, self.data, output), output)


@dataclass(kw_only=True)
class CommandCodec:
    """Run any other external codec, and write pairs of its renders and results."""

    data: Path
    """The path that replaces {data} in --command."""
    output: Path | None = None
    """The output folder; by default outputs/<scene>/command/<rate>."""
    codec: Annotated[CommandSettings, OmitArgPrefixes] = field(default_factory=CommandSettings)
    """The codec's command and files."""

    def main(self) -> None:
        """Run the command unless it has finished, then write its pairs and results."""
        output = self.output or _default_output(self.data, "command", self.codec.rate)
        compress_externally(command(self.codec, self.data, output), output)


def _default_output(data: Path, codec: str, rate: str) -> Path:
    return Path("outputs") / data.resolve().name / codec / rate


def compress_externally(codec: ExternalCodec, output: Path) -> None:
    """Run a codec unless it has finished in `output`, then write its pairs and results there and print them.

    `<output>/` holds `model/`, `log.txt` and `run.json` (see `compress.external`), `results.json` with its CSV, and
    `pairs/<scene>/rate_<rate>/`.

    Raises:
        NifiError: if the codec fails or its output does not match; before long work starts where possible.
    """
    from rich.console import Console

    from nifi_ns import results
    from nifi_ns.compress.external import run

    console = Console()
    if not run(codec, output):
        console.print(f"{codec.name} has already finished in {output}: only its pairs and results are written again")
    folder, rows = import_run(codec, output)
    results.show(rows, title=f"{len(folder.splits['test'])} held-out views against photos, mean")
    counts = " + ".join(f"{len(folder.splits[split])} {split}" for split in ("train", "test"))
    console.print(f"{folder.label}: {counts} pairs in {folder.root}; results in {output / 'results.json'}")
    if not folder.splits["train"]:
        console.print(f"{codec.name} rendered no training views: these pairs cannot train a restorer")


def import_run(codec: ExternalCodec, output: Path) -> "tuple[PairFolder, list[Row]]":
    """Write and return the pairs and result rows of a finished run. Pairs whose inputs did not change are kept.

    There is a row for each test view and one for their mean, with this project's metrics of the 8-bit pictures.

    Raises:
        NifiError: if pictures or sizes in bytes are missing or do not match.
    """
    from rich.progress import track

    from nifi_ns import metrics, results
    from nifi_ns.compress.external import find_pictures, read_log
    from nifi_ns.files import fingerprint
    from nifi_ns.pairs import PairFolder, PairWriter, is_current

    pictures, size = find_pictures(codec), codec.count_bytes(read_log(output))
    _check_sizes(codec, pictures)
    root = output / "pairs" / codec.scene / f"rate_{codec.rate}"
    files = [file for named in pictures.values() for both in named.values() for file in both]
    names = {split: list(named) for split, named in pictures.items()}
    made_of = fingerprint((VERSION, codec.name, codec.scene, codec.rate, size), names, files=files)
    current = is_current(root, made_of)
    what = {"scene": codec.scene, "rate": codec.rate, "bytes": size, "gaussians": None, "fingerprint": made_of}
    writer = None if current else PairWriter(root, **what)
    measured: dict[str, dict[str, float | None]] = {}
    views: list[tuple[Split, str, tuple[Path, Path]]] = [
        (split, name, files) for split, named in pictures.items() for name, files in named.items()
    ]
    for split, name, (render, photo) in track(views, f"{codec.name}: pairs", transient=True):
        degraded, clean = _read(render), _read(photo)
        if writer is not None:
            writer.add(split, name, clean, degraded)
        if split == "test":
            measured[name] = metrics.compute(degraded, clean)
    folder = PairFolder.open(root) if writer is None else writer.finish()
    mean = metrics.mean(list(measured.values()))
    rows = [
        results.Row(codec.scene, "compressed", size, None, values, codec.rate, name, {"codec": codec.name})
        for name, values in [*measured.items(), (None, mean)]
    ]
    results.save(output / "results.json", rows)
    return folder, rows


def _check_sizes(codec: ExternalCodec, pictures: "Pictures") -> None:
    """Compare the sizes of all renders and photos by their headers."""
    from nifi_ns.media import picture_size

    for split, named in pictures.items():
        for name, (render, photo) in named.items():
            (w0, h0), (w1, h1) = picture_size(render), picture_size(photo)
            if (w0, h0) != (w1, h1):
                raise NifiError(f"{codec.name}: {split} view {name} is {w0}x{h0} but its photo {photo} is {w1}x{h1}")


def _read(path: Path) -> "Tensor":
    """Return a picture [H, W, 3] in [0, 1]."""
    import torch

    from nifi_ns.media import read_picture

    return torch.from_numpy(read_picture(path)).float() / 255
