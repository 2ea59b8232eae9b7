"""Compare held-out views as compressed, restored in several ways, and with reference residuals.

    python scripts/bench_restore.py --pairs outputs/fox/nifi-splat-lite/demo/nifi/pairs --generic restorer

`--pairs` are folders written by `ns-nifi-pairs` with referenced views. For every scene, two restorers are trained on
all rates with the same steps: one on compressed renders (*adapted*), and one on renders with reference residuals
(*referenced + network*). If the pairs list attended photos, a third restorer attends to them (*reference-guided*) and
is measured with and without them. `--generic` is a restorer trained on other scenes. Besides the reference metrics,
`swd` and `spectrum` reward plausible detail. They also reward detail unrelated to the scene, so an unsharp mask with
grain, the same for every picture, is measured as a baseline.

`--ablate` trains on the first scene with one option changed at a time, with the same steps and crops. It measures the
last step at full strength, without selection on validation views.

Trained restorers are kept in `--work` and not trained again.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from nifi_ns import metrics
from nifi_ns.commands import run
from nifi_ns.commands.train import preset
from nifi_ns.diffusion import Backbone
from nifi_ns.errors import NifiError
from nifi_ns.files import format_size
from nifi_ns.learning import comparison_grid
from nifi_ns.media import write_picture
from nifi_ns.pairs import Input, PairFolder, find_pair_folders
from nifi_ns.restore import (
    RESTORER_FILE,
    Decode,
    Description,
    Restorer,
    Trainer,
    TrainingConfig,
    packaged_weights,
)
from nifi_ns.results import Row, Variant, save

_GRID_VIEWS = 3
_SHARPENING, _GRAIN = 0.4, 0.007  # share of the detail removed by a blur of one pixel; standard deviation in [0, 1]
_WHOLE = "as the defaults"
_ABLATIONS: dict[str, dict[str, Any]] = {
    _WHOLE: {},
    "no matching": {"match": 0.0},
    "no critic: ground truth alone": {"alpha": 0.0},
    "no ground truth: critic alone": {"alpha": 1.0},
    "ground truth as velocities": {"gt_space": "velocity"},
    "start at t0 = 199 with noise": {"t0": 199, "noise_scale": 1.0},
    "start at t0 = 199 without noise": {"t0": 199},
    "encoder not adapted": {"vae_encoder": False},
    "no distance of latents": {"latent": 0.0},
    "no distance of pixels": {"pixel": 0.0},
    "the paper's distances: of latents alone": {"pixel": 0.0, "latent": 1.0},
    "nothing perceptual": {"perceptual": 0.0},
    "HaarPSI in place of MS-SSIM": {"perceptual_metric": "haarpsi"},
    "patches' distance (swd) in place of MS-SSIM": {"perceptual_metric": "swd"},
    "LPIPS in place of MS-SSIM": {"perceptual_metric": "lpips"},
    "DISTS in place of MS-SSIM": {"perceptual_metric": "dists"},
}


@dataclass
class BenchRestore:
    """Compare restorers with their inputs."""

    pairs: tuple[Path, ...]
    """Folders of pairs with referenced views, of one or several rates and scenes."""
    generic: Path | None = None
    """A restorer trained on other scenes."""
    backbone: str = "nifi-tiny"
    """Same as for ns-nifi-train."""
    steps: int = 300
    """Steps of every training."""
    attended_photos: int = 2
    """Attended photos of the reference-guided restorer; 0 omits it."""
    ablate: bool = False
    """Also measure the effect of each part of the training, on the first scene."""
    work: Path = Path("outputs/bench_restore")
    """Folder of the trained restorers."""
    output: Path = Path("results/bench_restore.json")
    """JSON file for the results, with a CSV and a PNG grid of views per scene and rate beside it."""

    def main(self) -> None:
        """Train, measure, print tables, and write the results and the grids."""
        if self.steps < 1:
            raise NifiError(f"--steps is {self.steps}, expected at least 1")
        folders = find_pair_folders(self.pairs, "referenced")
        if untested := [folder.label for folder in folders if not folder.splits["test"]]:
            raise NifiError(f"{untested[0]} has no test views to measure")
        if self.generic is not None:
            Restorer.from_pretrained(self.generic)  # may raise
        rows: list[Row] = []
        for more in self._measured(folders):
            rows += more
            save(self.output, rows, backbone=self.backbone)
        console = Console(width=max(Console().width, 150))  # also without a terminal
        for title, shown in (
            ("held-out views, mean", [r for r in rows if "ablation" not in r.more]),
            (
                "what each part of the training brings, on held-out views",
                [r for r in rows if "ablation" in r.more],
            ),
        ):
            if shown:
                console.print(_table(title, [row.flat() for row in shown]))
        console.print(f"written to {self.output}, .csv and .png of every scene at a rate")

    def _measured(self, folders: Sequence[PairFolder]) -> Iterator[list[Row]]:
        config = preset("nifi-tiny").training.with_options(steps=self.steps)
        scenes = list(dict.fromkeys(folder.scene for folder in folders))
        for scene in scenes:
            own = [folder for folder in folders if folder.scene == scene]
            adapted = self._trained(own, f"{scene}/adapted", config)
            network = self._trained(own, f"{scene}/referenced", config, inputs="referenced")
            guided = None
            if self.attended_photos and all(folder.attended_photos for folder in own):
                attending = config.with_options(attended_photos=self.attended_photos)
                guided = self._trained(own, f"{scene}/guided", attending)
            for folder in own:
                ways = [_Way("compressed"), _Way("unsharp mask and grain", sharpened=True)]
                if self.generic is not None:
                    ways.append(_Way("generic", self.generic))
                ways.append(_Way("adapted", adapted))
                if guided is not None:
                    ways += [_Way("reference-guided", guided), _Way("guided, without photos", guided, photos=False)]
                ways += [_Way("referenced", inputs="referenced"), _Way("referenced + network", network, "referenced")]
                yield self._rows(folder, ways)
        if self.ablate:
            yield from self._ablations([folder for folder in folders if folder.scene == scenes[0]])

    def _ablations(self, folders: Sequence[PairFolder]) -> Iterator[list[Row]]:
        whole = preset("nifi-tiny").training.with_options(steps=self.steps)
        for number, (what, change) in enumerate(_ABLATIONS.items()):
            config = whole.with_options(**change)
            try:
                way = _Way(what, self._trained(folders, f"ablations/{number}", config, last=True))
            except NifiError as error:  # weights of a loss are not available
                Console().print(f"[yellow]{what}: {error}")
                continue
            ways = [way, replace(way, name="its latents decoded as a whole", decode="full")] if not change else [way]
            rows = [row for folder in folders for row in self._rows(folder, ways, grid=False)]
            yield [replace(row, more={**row.more, "ablation": row.more["way"]}) for row in rows]

    def _trained(
        self,
        folders: Sequence[PairFolder],
        name: str,
        config: TrainingConfig,
        *,
        inputs: Input = "degraded",
        last: bool = False,
    ) -> Path:
        """Return the restorer `name` in `work`, training it if missing.

        `last` takes the last step at full strength instead of the one chosen on validation views.
        """
        output = self.work / name
        about: dict[str, Any] = {"settings": config.options(), "inputs": inputs, "backbone": self.backbone}
        about |= {"pairs": [folder.fingerprint for folder in folders], "weights": packaged_weights(self.backbone)}
        about = json.loads(json.dumps(about))  # JSON values, for the comparison below
        kept = output / "kept"
        if not (kept / RESTORER_FILE).is_file() or Description.read(kept).training["bench"] != about:
            started = time.perf_counter()
            backbone = Backbone.from_pretrained(self.backbone)
            Trainer(backbone, folders, output, config, inputs=inputs, overwrite=True).train()
            restorer = Restorer.from_pretrained(output / "checkpoints" / "last" if last else output)
            if last:
                restorer.settings = replace(restorer.settings, strength=1.0)
            restorer.training = {"bench": about, "seconds": time.perf_counter() - started}
            restorer.save_pretrained(kept)
        return kept

    def _rows(self, folder: PairFolder, ways: "Sequence[_Way]", *, grid: bool = True) -> list[Row]:
        """Return a row for each way of restoring the test views of a folder, and write their grid beside the output."""
        measured: dict[str, list[dict[str, float | None]]] = {way.name: [] for way in ways}
        restorers = [way.restorer() for way in ways]
        pictures: list[list[Tensor]] = []
        names = folder.splits["test"]
        for name in track(names, f"{folder.label}: measuring", transient=True):
            shown = []
            for way, restorer in zip(ways, restorers, strict=True):
                clean, image = (torch.from_numpy(x).float() / 255 for x in folder.load("test", name, way.inputs))
                photos = folder.photos(
                    "test", name, restorer.settings.attended_photos if restorer and way.photos else 0
                )
                image = _sharpened(image) if way.sharpened else image
                shown.append(image if restorer is None else restorer(image, attended_photos=photos))
                measured[way.name].append(metrics.compute(shown[-1], clean, names=metrics.METRICS))
            pictures.append([*shown, clean])  # pyright: ignore[reportPossiblyUnboundVariable]
        if grid:
            chosen = [pictures[i * len(pictures) // _GRID_VIEWS] for i in range(min(_GRID_VIEWS, len(pictures)))]
            path = self.output.with_name(f"{self.output.stem}_{folder.scene}_{folder.rate}.png")
            write_picture(path, comparison_grid(chosen))
        rows = []
        for way, restorer in zip(ways, restorers, strict=True):
            more: dict[str, Any] = {"way": way.name}
            if restorer is not None:
                more |= {"strength": restorer.settings.strength, "seconds": restorer.training.get("seconds")}
                more |= {"adapter_bytes": way.adapter_bytes}
            values = metrics.mean(measured[way.name])
            made_of = {"bytes": folder.bytes, "gaussians": folder.gaussians, "rate": folder.rate}
            rows.append(Row(folder.scene, way.variant, metrics=values, **made_of, more=more))
        return rows


@dataclass(frozen=True)
class _Way:
    """One way of restoring a view."""

    name: str
    folder: Path | None = None
    """Folder of the restorer; None for none."""
    inputs: Input = "degraded"
    decode: Decode | None = None
    """Replaces the restorer's own setting."""
    photos: bool = True
    """Whether the restorer gets attended photos, if it was trained with some."""
    sharpened: bool = False

    @property
    def variant(self) -> Variant:
        if self.folder is not None:
            return "restored"
        return "referenced" if self.inputs == "referenced" else "compressed"

    @property
    def adapter_bytes(self) -> int:
        assert self.folder is not None
        return sum(path.stat().st_size for path in self.folder.glob("*_lora_weights.safetensors"))

    def restorer(self) -> Restorer | None:
        if self.folder is None:
            return None
        restorer = Restorer.from_pretrained(self.folder)
        if self.decode is not None:
            restorer.settings = replace(restorer.settings, decode=self.decode)
        return restorer


def _sharpened(image: Tensor) -> Tensor:
    """Return an image [H, W, 3] in [0, 1], sharpened and with grain."""
    from torchvision.transforms.functional import gaussian_blur

    blurred = gaussian_blur(image.movedim(-1, 0), [5, 5], [1.0, 1.0]).movedim(0, -1)
    grain = torch.randn(*image.shape[:2], 1, generator=torch.Generator().manual_seed(0))
    return (image + _SHARPENING * (image - blurred) + _GRAIN * grain).clamp(0, 1)


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown = [name for name in metrics.METRICS if any(r[name] is not None for r in rows)]
    for name in ("scene", "rate", ""):
        table.add_column(name, no_wrap=True)
    for name in ("adapter", "strength", "seconds", *shown):
        table.add_column(f"{name} ↓" if name in metrics.LOWER_IS_BETTER else name, justify="right", no_wrap=True)
    cell: Callable[[Any, str], str] = lambda value, style: "" if value is None else format(value, style)  # noqa: E731
    for r in rows:
        size = r.get("adapter_bytes")
        table.add_row(
            *(r["scene"], r["rate"], r["way"], "" if size is None else format_size(size)),
            *(cell(r.get("strength"), "g"), cell(r.get("seconds"), ".0f")),
            *(cell(r[name], ".2f" if name == "psnr" else ".4f") for name in shown),
        )
    return table


if __name__ == "__main__":
    run(BenchRestore)
