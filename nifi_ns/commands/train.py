"""`ns-nifi-train`: train a restorer on pairs of scene file renders and photos."""

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
"""Options that a preset may set. Data and folders come from the command line."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass
class Train:
    """Train a restorer on pairs of compressed renders and photos.

    Saves the step and strength that are best on validation views, which are held out from the training views. Test
    views are only measured. To train on several GPUs or machines, start it with `accelerate launch` or `torchrun`; all
    processes need access to the same folders.
    """

    pairs: tuple[Path, ...] = ()
    """Folders of pairs written by ns-nifi-pairs, of one or several rates and scenes."""
    load_config: tuple[Path, ...] = ()
    """The config.yml of scene files. Their pairs are written first, unless they are current."""
    output_dir: Path | None = None
    """The restorer's folder; by default nifi/restorer in the first run of --load-config, where the viewer finds it."""
    backbone: str = NIFI_TINY
    """The frozen diffusion model: nifi-tiny, which is part of the package, or a diffusers folder or hub id of an SD3,
    SD2, SD1.5 or SD-Turbo. By default the backbone of --preset."""
    prompt: str | None = None
    """Prompt for --backbone with every view; "" for none. It is embedded once, and the embeddings are saved with the
    restorer. nifi-tiny takes no prompt."""
    inputs: Input = "degraded"
    """Images to restore: plain renders, or renders with reference residuals."""
    start_from: Path | None = None
    """A restorer to start from, such as one trained on other scenes, with the same backbone, --rank and
    --vae-encoder."""
    device: str | None = None
    """Device to use, such as cuda:1; by default a GPU for each process if there is one."""
    resume: bool = False
    """Continue the training in --output-dir. Settings must match, except --steps, intervals and memory options."""
    overwrite: bool = False
    """Replace the training in --output-dir."""
    smoke: bool = False
    """Train for ten steps only, to test that everything works."""
    preset: str | None = None
    """Defaults for all other options: nifi-tiny, laptop, sd3, sd3-24gb, sd, sd-turbo, sd-turbo-12gb, or the path of a
    YAML file. By default the preset of --backbone's family."""
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def main(self) -> None:
        """Check the options, write pairs if needed, train, and print the result."""
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
        config.batch_per_process(processes.count())  # may raise
        backbone = Backbone.from_pretrained(self.backbone, device, prompt=self._prompt(output))
        with processes.first_before_others():
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
        found += f": {less:.1f} % less error on validation views" if trained.choice.strength else " (it did not help)"
        console.print(f"restorer in {trained.output}: {found}")

    def _output(self) -> Path:
        if self.output_dir is not None:
            return self.output_dir
        if not self.load_config:
            raise NifiError("give --output-dir, the folder to write the restorer to")
        beside = self.load_config[0].parent
        scenes = beside.parent if (beside / "scene.nifi").is_file() else beside / "nifi"
        return scenes / "restorer"

    def _prompt(self, output: Path) -> Prompt | str | None:
        """Return the prompt for the backbone: the stored one of a resumed training, if it is the same text."""
        if not (self.resume and (output / PROMPT_FILE).is_file()):
            return self.prompt
        stored = Prompt.load(output / PROMPT_FILE)
        return stored if self.prompt in (None, stored.text) else self.prompt

    def _make_pairs(self) -> list[PairFolder]:
        """Write the pairs of `load_config` unless they are current, and return them."""
        if not self.load_config:
            return []
        from nifi_ns.plugin.run_pairs import write_pairs

        return [write_pairs(config, referenced=self.inputs == "referenced") for config in self.load_config]


def _smoke(config: TrainingConfig) -> TrainingConfig:
    """Return a config that trains in under a minute on one core with nifi-tiny."""
    often = {"log_every": 2, "eval_every": 10, "eval_views": 2, "checkpoint_every": 5}
    return config.with_options(steps=10, batch_size=2, **often)


def preset(name: str, backbone: str | None = None) -> Train:
    """Return the command with the options of a preset, such as `preset("nifi-tiny").training`.

    Args:
        name: name of a packaged preset, or path of a YAML file. A file lists changes to its `base`, by default the
            preset of its backbone's family.
        backbone: backbone of a file with neither base nor backbone; by default nifi-tiny.

    Raises:
        NifiError: if the preset or backbone does not exist, or a value is invalid.
    """
    values = read_preset(name)
    base = values.pop("base", None)
    if base is None and name not in preset_names():
        base = default_preset(backbone or str(values.get("backbone", NIFI_TINY)))
    if base is not None and base not in preset_names():
        raise NifiError(f"{name}: base is {base!r}, expected one of {', '.join(preset_names())}")
    return with_values(Train() if base is None else preset(base), values, PRESET_FIELDS, where=name)


def _defaults() -> Train:
    """Return the defaults of --preset or --backbone. These two options are parsed before all others.

    Raises:
        NifiError: if the preset and --backbone are of different families.
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
            f"--preset {given.preset} is for {chosen.backbone} and does not match --backbone {given.backbone}: "
            f"omit --preset, or give --preset {default_preset(given.backbone)}"
        )
    return chosen


def _trained_like(backbone: str) -> str:
    """Return the backbone of the preset for `backbone`. Backbones named in presets need no look-up on the hub."""
    named = {preset(name).backbone for name in preset_names()}
    return backbone if backbone in named else preset(default_preset(backbone)).backbone


def entrypoint() -> None:
    """Run `ns-nifi-train`."""
    run(Train, _defaults)


if __name__ == "__main__":  # accelerate launch -m nifi_ns.commands.train
    entrypoint()
