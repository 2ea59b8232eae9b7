"""`ns-nifi-train`: a restorer, trained on what scene files render to beside the photos."""

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from nifi_ns.commands._cli import run
from nifi_ns.diffusion import PROMPT_FILE, Prompt
from nifi_ns.errors import NifiError
from nifi_ns.pairs import Input, PairFolder
from nifi_ns.presets import load_preset
from nifi_ns.restore import TrainingConfig

PRESET_FIELDS = ("backbone", "prompt", "inputs", "training")
"""What a preset may decide; data and folders are the command line's."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass
class Train:
    """Train a restorer on pairs of compressed renders and photos.

    The restorer that serves best on validation views (a part of the training views) is kept, at the strength that
    serves best there; test views are only measured. To train on several GPUs or machines, start this command with
    `accelerate launch` or `torchrun`; all processes have to see the same folders.
    """

    pairs: tuple[Path, ...] = ()
    """Folders of pairs, as ns-nifi-pairs writes them: of one rate, one scene or many."""
    load_config: tuple[Path, ...] = ()
    """Make the pairs first, of these config.yml of scene files (kept and reused until a scene file changes)."""
    output_dir: Path | None = None
    """The restorer's folder. By default that of the first run of --load-config, where the viewer finds it."""
    backbone: str = "nifi-tiny"
    """The frozen diffusion model: nifi-tiny, a diffusers folder, or a hub id of an SD3, SD2, SD1.5 or SD-Turbo. The
    other options' defaults are for nifi-tiny: use a preset with others."""
    prompt: str | None = None
    """The one text that --backbone is told, with every view; "" for none. Its text encoders embed it once, and the
    embeddings are kept with the restorer. nifi-tiny, which knows no text, takes none."""
    inputs: Input = "degraded"
    """What to restore: plain renders, or renders that reference photos have already restored."""
    start_from: Path | None = None
    """A restorer to begin with, such as one trained on other scenes: of the same backbone, --rank and --vae-encoder."""
    device: str | None = None
    """By default the GPU if there is one (for each process its own), else the CPU."""
    resume: bool = False
    """Continue the training in --output-dir where it stopped; its settings must be the same, but for --steps."""
    overwrite: bool = False
    """Start anew though --output-dir holds a training, which is lost."""
    smoke: bool = False
    """A very short training, to see that everything works."""
    preset: str | None = None
    """Settings that belong together, which other options override: nifi-tiny, laptop, smoke, sd3, sd3-24gb, sd-turbo,
    sd-turbo-12gb, or the path of a YAML file of your own."""
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


def preset(name: str) -> Train:
    """Return the command as a preset has it: `preset("nifi-tiny").training` is how nifi-tiny is trained."""
    return load_preset(name, Train(), PRESET_FIELDS)


def _with_preset() -> Train:
    """The defaults of the options: those of --preset, which is looked for before all others are parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    return preset(parser.parse_known_args()[0].preset or "nifi-tiny")


def entrypoint() -> None:
    """`ns-nifi-train`."""
    run(Train, _with_preset)


if __name__ == "__main__":  # accelerate launch -m nifi_ns.commands.train
    entrypoint()
