"""`ns-nifi-eval`: bytes and metrics on held-out views, before and after compression, and restored."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nifi_ns.commands._cli import run
from nifi_ns.diffusion import CompileMode

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from nifi_ns.plugin.runs import Run
    from nifi_ns.restore import Restorer
    from nifi_ns.results import Row, Variant
    from nifi_ns.views import View


@dataclass
class Eval:
    """Measure runs on their held-out photos: uncompressed, compressed, with reference residuals, restored."""

    load_config: tuple[Path, ...]
    """The config.yml of one or more runs, or of scene files written by ns-nifi-compress."""
    output_path: Path = Path("eval.json")
    """The .json file to write. The same rows are written to a .csv beside it."""
    restorer: Path | None = None
    """The restorer for all runs; by default each run's own, if it has one."""
    images_dir: Path | None = None
    """Also write every view to IMAGES_DIR/<scene>_<rate>/<variant>/NAME.png."""
    decoder: str | None = None
    """Decode with a small, faster autoencoder instead of the backbone's own: a folder or hub id of an AutoencoderTiny
    for this backbone, such as madebyollin/taesd3 for SD3."""
    compile: CompileMode | None = None
    """Compile the networks with this mode of torch.compile: faster after a slow first view."""
    consistency: bool = False
    """Also measure flicker, which takes twice as long: compare each view with the view of a camera a twentieth of the
    way to the next training view, warped back by the splats' depth."""

    def main(self) -> None:
        """Measure every run, then write and print the table."""
        from rich.console import Console

        from nifi_ns import results
        from nifi_ns.errors import NifiError
        from nifi_ns.plugin.evaluation import evaluate
        from nifi_ns.plugin.runs import load_run
        from nifi_ns.restore import Restorer

        if self.output_path.suffix != ".json":
            raise NifiError(f"--output-path {self.output_path} must end in .json; the CSV is written beside it")
        if self.restorer is not None:
            Restorer.from_pretrained(self.restorer)  # may raise
        rows: list[Row] = []
        for config in self.load_config:
            opened = load_run(config)
            if self.restorer is not None:
                opened.model.config.restorer = self.restorer
            if self.decoder is not None or self.compile is not None:
                opened.model.view_restorer.use(self._load_restorer(opened))
            faster = tuple(how for how in (self.decoder, self.compile) if how is not None)
            rows += evaluate(opened, consistency=self.consistency, on_view=partial(self._keep, opened), faster=faster)
            results.save(self.output_path, rows)  # after each run, so that an interruption loses at most one
        results.show(rows, title="held-out views, mean")
        if self.consistency:
            Console().print(_consistency_table(rows))
        Console().print(f"written to {self.output_path} and {self.output_path.with_suffix('.csv')}")

    def _keep(self, opened: "Run", view: "View", pictures: "dict[Variant, Tensor]") -> None:
        """Write a view's pictures if --images-dir is given."""
        from nifi_ns.media import write_picture

        if self.images_dir is None:
            return
        for variant, picture in pictures.items():
            target = self.images_dir / f"{opened.scene}_{opened.rate}" / variant / f"{view.name}.png"
            write_picture(target, picture)

    def _load_restorer(self, opened: "Run") -> "Restorer":
        """Return the run's restorer with --decoder and --compile. Loaded at once, because both may fail."""
        from nifi_ns.errors import NifiError
        from nifi_ns.restore import Restorer

        folder = opened.model.restorer_folder
        if folder is None:
            raise NifiError(f"--decoder and --compile need a restorer and {opened.scene} has none: give --restorer")
        device = opened.model.device
        return Restorer.from_pretrained(folder, device, decoder=self.decoder, compile=self.compile).load()


def _consistency_table(rows: "list[Row]") -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title="against the next frame, warped back", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("scene", "rate", "variant"):
        table.add_column(name)
    table.add_column("PSNR", justify="right")
    for r in rows:
        if r.image is None and r.more.get("consistency") is not None:
            table.add_row(r.scene, r.rate, r.variant, f"{r.more['consistency']:.2f}")
    return table


def entrypoint() -> None:
    """Run `ns-nifi-eval`."""
    run(Eval)
