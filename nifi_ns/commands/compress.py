"""`ns-nifi-compress`: splats to a scene file of a given size, and back."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nifi_ns.commands._cli import run
from nifi_ns.commands._scenes import describe
from nifi_ns.compress import CompressionSettings
from nifi_ns.compress.external import CommandSettings, HacppSettings
from nifi_ns.errors import NifiError

if TYPE_CHECKING:
    from nifi_ns.compress import Compressed
    from nifi_ns.splats import Splats
    from nifi_ns.views import View


_METRICS = ("psnr", "ssim", "ms_ssim", "haarpsi", "gmsd")  # those that need no weights


@dataclass
class Compress:
    """Compress a trained run or a 3DGS .ply to a scene file, decode one, or tell what is in one.

    Exactly one of --load-config, --ply, --decode and --info says what to do; or --codec with --data.
    """

    load_config: Path | None = None
    """The config.yml of a splatfacto or nifi-splat run: compressed against its photos to
    <run>/nifi/<size>/scene.nifi, with a config.yml beside it for ns-viewer, ns-render and ns-eval."""
    ply: Path | None = None
    """A 3DGS .ply, .compressed.ply, .spz, .splat, .sog, or folder of an unzipped .sog: compressed against its own
    renders."""
    decode: Path | None = None
    """A scene file to turn into a .ply, or into any other format of --ply that --output ends in."""
    info: Path | None = None
    """A scene file to look into."""
    output: Path | None = None
    """The file to write with --ply and --decode; by default beside the input, as .nifi or .ply. With another
    --codec, the folder for all that comes of it; by default outputs/<scene>/<codec>/<rate>."""
    sizes: tuple[str, ...] = ()
    """With --load-config: several target sizes in one go, each a file of its own."""
    target_psnr_drop: float | None = None
    """With --load-config, in place of a size: the smallest file found that loses at most so many dB against the
    training photos. Named after the size it turns out to have."""
    codec: Literal["nifi", "hacpp", "command"] = "nifi"
    """hacpp: a checkout of HAC++ in its own environment; command: any program. Their renders become pairs, their bytes
    and quality rows of results."""
    data: Path | None = None
    """What another --codec is run on; for hacpp a COLMAP scene, images/ and sparse/0/."""
    hacpp: Annotated[HacppSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=HacppSettings)
    """How to run HAC++."""
    command: Annotated[CommandSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=CommandSettings)
    """How to run any other codec."""
    compression: Annotated[CompressionSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=CompressionSettings)
    """How to compress."""

    def main(self) -> None:
        """Do what the one chosen option asks for."""
        modes = {"--load-config": self.load_config, "--ply": self.ply, "--decode": self.decode, "--info": self.info}
        chosen = [name for name, path in modes.items() if path is not None]
        external = {"hacpp": self.hacpp, "command": self.command}
        if unused := [name for name, options in external.items() if name != self.codec and options != type(options)()]:
            raise NifiError(f"options of {unused[0]} were given: add --codec {unused[0]}, or leave them away")
        if self.codec != "nifi":
            from nifi_ns.commands._external import compress_externally

            if chosen or self.compression != CompressionSettings():
                what = chosen[0] if chosen else "nifi's options"
                raise NifiError(f"--codec {self.codec} does not go with {what}: give --data and the options of its own")
            return compress_externally(external[self.codec], self.data, self.output)
        if self.data is not None:
            raise NifiError("--data goes with --codec hacpp or command; nifi's own input is --load-config or --ply")
        if len(chosen) != 1:
            raise NifiError(f"give exactly one of {', '.join(modes)}; got {' and '.join(chosen) or 'none'}")
        if self.output is not None and (self.load_config or self.info):
            raise NifiError(f"--output does not go with {chosen[0]}: use it with --ply or --decode")
        if (self.sizes or self.target_psnr_drop is not None) and self.load_config is None:
            raise NifiError(f"--sizes and --target-psnr-drop go with --load-config, not with {chosen[0]}")
        if self.sizes and self.target_psnr_drop is not None:
            raise NifiError("give --sizes or --target-psnr-drop, not both")
        if self.load_config is not None:
            self._compress_run(self.load_config)
        elif self.ply is not None:
            self._compress_ply(self.ply, self.output or self.ply.with_suffix(".nifi"))
        elif self.decode is not None:
            self._decode(self.decode, self.output or self.decode.with_suffix(".ply"))
        elif self.info is not None:
            from nifi_ns.compress import info

            print(f"{self.info.name}: {describe(info(_read(self.info)))}")

    def _compress_run(self, config: Path) -> None:
        from nifi_ns.files import format_size
        from nifi_ns.plugin.runs import load_run

        ladder = [replace(self.compression, target_size=size) for size in self.sizes]  # checked before long work
        opened = load_run(config)
        background, mode = opened.model.background_color, opened.model.config.rasterize_mode
        drawn = {"background": background, "antialiased": mode == "antialiased"}
        for settings in ladder or [self.compression]:
            compressed, seconds = self._compress(opened.uncompressed, opened.train_views, settings, drawn)
            rate = settings.target_size if self.target_psnr_drop is None else format_size(len(compressed.data))
            written = opened.save_scene(compressed.data, rate)
            _report(opened.uncompressed, compressed, seconds, opened.eval_views, drawn, "the held-out photos")
            print(f"written to {written.with_name('scene.nifi')}; look at it with --load-config {written}")

    def _compress_ply(self, source: Path, target: Path) -> None:
        from nifi_ns.compress import cameras_around, with_renders
        from nifi_ns.files import write_bytes
        from nifi_ns.formats import is_antialiased, load

        _check_target(target, ".nifi")
        splats, drawn = load(source).to(_device()), {"antialiased": is_antialiased(source)}
        compressed, seconds = self._compress(splats, [], self.compression, drawn)
        write_bytes(target, compressed.data)
        unseen = with_renders(splats, cameras_around(splats, count=8, seed=self.compression.seed + 1), **drawn)
        _report(splats, compressed, seconds, unseen, drawn, "the uncompressed splats' renders")
        print(f"written to {target}")

    def _compress(
        self, splats: "Splats", views: "Sequence[View]", settings: CompressionSettings, drawn: dict[str, Any]
    ) -> tuple["Compressed", float]:
        from nifi_ns.compress import compress, compress_to_loss

        started = time.perf_counter()
        if self.target_psnr_drop is None:
            compressed = compress(splats, views, settings, **drawn)
        else:
            compressed = compress_to_loss(splats, views, self.target_psnr_drop, settings, **drawn)
        return compressed, time.perf_counter() - started

    def _decode(self, source: Path, target: Path) -> None:
        from nifi_ns.compress import decode, info
        from nifi_ns.formats import save, suffix

        suffix(target)  # an unknown one is named before the scene is decoded
        data = _read(source)
        splats = decode(data)
        save(target, splats, antialiased=info(data).antialiased)
        print(f"{len(splats):,} gaussians written to {target}")


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise NifiError(f"no such file: {path}")
    return path.read_bytes()


def _check_target(path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise NifiError(f"--output {path} must end in {suffix}")


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
    """What a compression kept, what it took, and what it costs in quality."""
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
            quality[when].append(metrics.compute(image, view.image.to(image), names=_METRICS))
    table = Table(title=f"{len(views)} views against {against}, mean")
    for heading in ("", *_METRICS):
        table.add_column(heading)
    for when, rows in quality.items():
        table.add_row(when, *("-" if v is None else f"{v:.4g}" for v in metrics.mean(rows).values()))
    console.print(table)


def entrypoint() -> None:
    """`ns-nifi-compress`."""
    run(Compress)
