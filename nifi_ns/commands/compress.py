"""`ns-nifi-compress`: compress splats to a scene file of a given size, and decode it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, create_mutex_group, subcommand

from nifi_ns.commands._cli import run
from nifi_ns.commands._external import CommandCodec, Hacpp
from nifi_ns.commands._scenes import describe
from nifi_ns.compress import CompressionSettings
from nifi_ns.errors import NifiError

if TYPE_CHECKING:
    from nifi_ns.compress import Compressed
    from nifi_ns.splats import Splats
    from nifi_ns.views import View


_TARGET = create_mutex_group(required=False, title="in place of --target-size")


@dataclass(kw_only=True)
class CompressRun:
    """Compress a splatfacto or nifi-splat run against its photos.

    Writes <run>/nifi/<size>/scene.nifi, with a config.yml beside it for ns-viewer, ns-render and ns-eval.
    """

    config: Positional[Path]
    """The run's config.yml."""
    sizes: Annotated[tuple[str, ...], _TARGET] = ()
    """Several target sizes, one scene file for each."""
    target_psnr_drop: Annotated[float | None, _TARGET] = None
    """Write the smallest file found that loses at most this many dB of PSNR on the training photos. Its folder is named
    after the resulting size."""
    compression: Annotated[CompressionSettings, OmitArgPrefixes] = field(default_factory=CompressionSettings)
    """How to compress."""

    def main(self) -> None:
        """Compress to each size, and print sizes and quality."""
        from nifi_ns.files import format_size
        from nifi_ns.plugin.runs import load_run

        ladder = [replace(self.compression, target_size=size) for size in self.sizes]  # checked before long work
        opened = load_run(self.config)
        background, mode = opened.model.background_color, opened.model.config.rasterize_mode
        drawn: dict[str, Any] = {"background": background, "antialiased": mode == "antialiased"}
        for settings in ladder or [self.compression]:
            started = time.perf_counter()
            compressed = self._compress(opened.uncompressed, opened.train_views, settings, drawn)
            seconds = time.perf_counter() - started
            rate = settings.target_size if self.target_psnr_drop is None else format_size(len(compressed.data))
            written = opened.save_scene(compressed.data, rate)
            _report(opened.uncompressed, compressed, seconds, opened.eval_views, drawn, "the held-out photos")
            print(f"written to {written.with_name('scene.nifi')}; view it with ns-viewer --load-config {written}")

    def _compress(
        self, splats: "Splats", views: "Sequence[View]", settings: CompressionSettings, drawn: dict[str, Any]
    ) -> "Compressed":
        from nifi_ns.compress import compress, compress_to_loss

        if self.target_psnr_drop is None:
            return compress(splats, views, settings, **drawn)
        return compress_to_loss(splats, views, self.target_psnr_drop, settings, **drawn)


@dataclass(kw_only=True)
class CompressSplats:
    """Compress a file of splats against its own renders."""

    file: Positional[Path]
    """A 3DGS .ply, .compressed.ply, .spz, .splat or .sog file, or the folder of an unzipped .sog."""
    output: Path | None = None
    """The scene file to write; by default beside the input, as .nifi."""
    compression: Annotated[CompressionSettings, OmitArgPrefixes] = field(default_factory=CompressionSettings)
    """How to compress."""

    def main(self) -> None:
        """Compress, and print sizes and quality."""
        from nifi_ns.compress import cameras_around, compress, with_renders
        from nifi_ns.files import write_bytes
        from nifi_ns.formats import is_antialiased, load

        target = self.output or self.file.with_suffix(".nifi")
        if target.suffix != ".nifi":
            raise NifiError(f"--output {target} must end in .nifi")
        splats = load(self.file).to(_device())
        drawn: dict[str, Any] = {"antialiased": is_antialiased(self.file)}
        started = time.perf_counter()
        compressed = compress(splats, [], self.compression, **drawn)
        seconds = time.perf_counter() - started
        write_bytes(target, compressed.data)
        unseen = with_renders(splats, cameras_around(splats, count=8, seed=self.compression.seed + 1), **drawn)
        _report(splats, compressed, seconds, unseen, drawn, "the uncompressed splats' renders")
        print(f"written to {target}")


@dataclass(kw_only=True)
class Decode:
    """Convert a scene file to .ply or another format that other programs read."""

    scene: Positional[Path]
    """A scene file."""
    output: Path | None = None
    """The file to write: .ply, .compressed.ply, .spz, .splat or .sog; by default beside the input, as .ply."""

    def main(self) -> None:
        """Decode the scene and write the file."""
        from nifi_ns.compress import decode, info
        from nifi_ns.formats import save, suffix

        target = self.output or self.scene.with_suffix(".ply")
        suffix(target)  # refuse an unknown suffix before decoding
        data = _read(self.scene)
        splats = decode(data)
        save(target, splats, antialiased=info(data).antialiased)
        print(f"{len(splats):,} gaussians written to {target}")


@dataclass(kw_only=True)
class Info:
    """Print the contents of a scene file: gaussians, levels of detail, and the bytes of each stream."""

    scene: Positional[Path]
    """A scene file."""

    def main(self) -> None:
        """Read the file and print its contents."""
        from nifi_ns.compress import info

        print(f"{self.scene.name}: {describe(info(_read(self.scene)))}")


Compress = (
    Annotated[CompressRun, subcommand("run")]
    | Annotated[CompressSplats, subcommand("splats")]
    | Annotated[Decode, subcommand("decode")]
    | Annotated[Info, subcommand("info")]
    | Annotated[Hacpp, subcommand("hacpp")]
    | Annotated[CommandCodec, subcommand("command")]
)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise NifiError(f"no such file: {path}")
    return path.read_bytes()


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _report(
    splats: "Splats",
    compressed: "Compressed",
    seconds: float,
    views: "Sequence[View]",
    drawn: dict[str, Any],
    against: str,
) -> None:
    """Print the sizes, times and quality of a compression."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from nifi_ns import metrics
    from nifi_ns.compress import decode, encode, info
    from nifi_ns.rasterize import render

    print(f"scene file: {describe(info(compressed.data))}")
    took = {"fine-tuning": seconds}
    for name, work in (
        ("encoding", lambda: encode(compressed.splats, compressed.bits)),
        ("decoding", lambda: decode(compressed.data)),
    ):
        started = time.perf_counter()
        work()
        took[name] = time.perf_counter() - started
    console = Console()
    kept, ratio = len(compressed.splats), splats.ply_size / len(compressed.data)
    console.print(f"{kept:,} of {len(splats):,} gaussians kept, {ratio:.0f}x smaller than the plain .ply")
    console.print(", ".join(f"{name} {value:.2f} s" for name, value in took.items()))

    quality: dict[str, list[dict[str, float | None]]] = {"before": [], "after": []}
    for view in views:
        assert view.image is not None
        for when, shown in (("before", splats), ("after", compressed.splats)):
            with torch.no_grad():
                image = render(shown, view, **drawn).rgb
            quality[when].append(metrics.compute(image, view.image.to(image), names=metrics.REFERENCE_METRICS))
    table = Table(title=f"{len(views)} views against {against}, mean")
    for heading in ("", *metrics.REFERENCE_METRICS):
        table.add_column(heading)
    for when, rows in quality.items():
        table.add_row(when, *("-" if v is None else f"{v:.4g}" for v in metrics.mean(rows).values()))
    console.print(table)


def entrypoint() -> None:
    """Run `ns-nifi-compress`."""
    run(Compress, description="Compress splats to a scene file of a given size, decode it, or print its contents.")
