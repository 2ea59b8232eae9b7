"""`ns-nifi-train`: train a restorer on what scene files render to, beside the photos."""

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from nifi_ns.commands._cli import run
from nifi_ns.diffusion import NIFI_TINY, PROMPT_FILE, Prompt, default_preset
from nifi_ns.errors import NifiError
from nifi_ns.pairs import Input, PairFolder
from nifi_ns.presets import preset_names, read_preset, with_values
from nifi_ns.restore import TrainingConfig

PRESET_FIELDS = ("backbone", "prompt", "inputs", "training")
"""What a preset may decide; data and folders are the command line's."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass
class Train:
    """Train a restorer on pairs of compressed renders and photos.

    Keeps the step that is best on validation views (a part of the training views), at the strength that is best there;
    test views are only measured. To train on several GPUs or machines, start it with `accelerate launch` or
    `torchrun`; all processes have to see the same folders.
    """

    pairs: tuple[Path, ...] = ()
    """Folders of pairs that ns-nifi-pairs wrote: of one rate or several, of one scene or many."""
    load_config: tuple[Path, ...] = ()
    """The config.yml of scene files whose pairs to write first, unless they are there and current."""
    output_dir: Path | None = None
    """The restorer's folder; by default nifi/restorer in the first run of --load-config, where the viewer finds it."""
    backbone: str = NIFI_TINY
    """The frozen diffusion model: nifi-tiny, which comes with the package, or a diffusers folder or hub id of an SD3,
    SD2, SD1.5 or SD-Turbo. By default that of --preset."""
    prompt: str | None = None
    """The text to give --backbone with every view; "" for none. It is embedded once, and the embeddings are kept with
    the restorer. nifi-tiny knows no text and takes none."""
    inputs: Input = "degraded"
    """What to restore: plain renders, or renders with the photos' reference residuals."""
    start_from: Path | None = None
    """A restorer to begin with, such as one trained on other scenes: of the same backbone, --rank and --vae-encoder."""
    device: str | None = None
    """Where to compute, such as cuda:1; by default the GPU if there is one, for each process its own."""
    resume: bool = False
    """Continue the training in --output-dir where it stopped; its settings must be the same, but for --steps."""
    overwrite: bool = False
    """Replace the training in --output-dir."""
    smoke: bool = False
    """Train for ten steps, to see that everything works."""
    preset: str | None = None
    """Defaults for all other options: nifi-tiny, laptop, sd3, sd3-24gb, sd-turbo, sd-turbo-12gb, or the path of a YAML
    file. By default the preset of --backbone's family."""
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def main(self) -> None:
        """Check what was given, make pairs if need be, train, and print what came of it."""
        from rich.console import Console

        from nifi_ns import results
        from nifi_ns.diffusion import Backbone
        from nifi_ns.learning import checkpoint_to_write, processes
        from nifi_ns.pairs import find_pair_folders
        from nifi_ns.restore import Trainer

        if not self.pairs and not self.load_config:
            raise NifiError("nothing to train on: give --pairs DIR... or --load-config CONFIG...")
        if absent := [path for path in self.load_config if not path.is_file()]:
            raise NifiError(f"no such config: {absent[0]}")
        if self.start_from is not None and not (self.start_from / "restorer.json").is_file():
            raise NifiError(f"no restorer in --start-from {self.start_from}: expected a restorer.json")
        output = self._output()
        folders = find_pair_folders(self.pairs, self.inputs)
        checkpoint_to_write(output, self.resume, self.overwrite)
        config = _smoke(self.training) if self.smoke else self.training
        device = processes.join(self.device)
        config.batch_per_process(processes.count())  # which may raise
        backbone = Backbone.from_pretrained(self.backbone, device, prompt=self._prompt(output))
        with processes.first_goes_first():
            folders += self._make_pairs()
        begun = {"start": self.start_from, "resume": self.resume, "overwrite": self.overwrite}
        trained = Trainer(backbone, folders, output, config, inputs=self.inputs, **begun).train()
        first = processes.index() == 0
        processes.leave()
        if not first:
            return
        console = Console()
        results.show(trained.rows, title="test views, mean")
        less = 100 * (1 - math.exp(trained.choice.error_change))
        found = f"step {trained.step}, strength {trained.choice.strength:g}"
        found += f": {less:.1f} % less error on validation views" if trained.choice.strength else " (it helped nowhere)"
        console.print(f"restorer in {trained.output}: {found}")

    def _output(self) -> Path:
        if self.output_dir is not None:
            return self.output_dir
        if not self.load_config:
            raise NifiError("give --output-dir: the folder the restorer is written to")
        beside = self.load_config[0].parent
        scenes = beside.parent if (beside / "scene.nifi").is_file() else beside / "nifi"
        return scenes / "restorer"

    def _prompt(self, output: Path) -> Prompt | str | None:
        """The prompt to load the backbone with: what a training that is resumed has stored, if it is the same."""
        if not (self.resume and (output / PROMPT_FILE).is_file()):
            return self.prompt
        stored = Prompt.load(output / PROMPT_FILE)
        return stored if self.prompt in (None, stored.text) else self.prompt

    def _make_pairs(self) -> list[PairFolder]:
        """The pairs of `load_config`, which are made unless they are there and current."""
        if not self.load_config:
            return []
        from nifi_ns.plugin.run_pairs import write_pairs

        return [write_pairs(config, referenced=self.inputs == "referenced") for config in self.load_config]


def _smoke(config: TrainingConfig) -> TrainingConfig:
    """Under a minute on one core with nifi-tiny."""
    often = {"log_every": 2, "eval_every": 10, "eval_views": 2, "checkpoint_every": 5}
    return config.with_options(steps=10, batch_size=2, **often)


def preset(name: str, backbone: str | None = None) -> Train:
    """Return the command as a preset has it: `preset("nifi-tiny").training` is how nifi-tiny is trained.

    Args:
        name: of a preset that comes with the package, or the path of a YAML file. A file says what it changes of its
            `base`, which by default is the preset of its backbone's family.
        backbone: the backbone of a file that names neither base nor backbone; by default nifi-tiny.

    Raises:
        NifiError: if there is no such preset or backbone, or a value does not fit.
    """
    values = read_preset(name)
    base = values.pop("base", None)
    if base is None and name not in preset_names():
        base = default_preset(backbone or str(values.get("backbone", NIFI_TINY)))
    if base is not None and base not in preset_names():
        raise NifiError(f"{name}: base is {base!r}, expected one of {', '.join(preset_names())}")
    return with_values(Train() if base is None else preset(base), values, PRESET_FIELDS, where=name)


def _defaults() -> Train:
    """Return the options' defaults, those of --preset or --backbone, which are looked for before others are parsed.

    Raises:
        NifiError: if the preset is for a backbone of another family than --backbone.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    parser.add_argument("--backbone")
    given = parser.parse_known_args()[0]
    if given.preset is None:
        return preset(default_preset(given.backbone or NIFI_TINY))
    chosen = preset(given.preset, given.backbone)
    if given.backbone is not None and _trained_like(given.backbone) != _trained_like(chosen.backbone):
        raise NifiError(
            f"--preset {given.preset} is for {chosen.backbone} and does not fit --backbone {given.backbone}: "
            f"leave out --preset, or give --preset {default_preset(given.backbone)}"
        )
    return chosen


def _trained_like(backbone: str) -> str:
    """Return the backbone of the preset that fits `backbone`; those that presets name are not looked for on the hub."""
    named = {preset(name).backbone for name in preset_names()}
    return backbone if backbone in named else preset(default_preset(backbone)).backbone


def entrypoint() -> None:
    """`ns-nifi-train`."""
    run(Train, _defaults)


if __name__ == "__main__":  # accelerate launch -m nifi_ns.commands.train
    entrypoint()
