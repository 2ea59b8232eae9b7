"""Training of a restorer: updates phi- and its critic phi+ in turn, on pairs of degraded views and photos.

Random numbers depend only on the seed and the step, and crops only on the seed and their index. A resumed run therefore
ends with the same bits (on a CPU) as an uninterrupted one. Several processes share the crops and random numbers of each
step; their number only changes the order of sums.

Some training views are held out for validation, to choose the best step and its strength. Test views are only measured.
The splats were fitted to the validation views, so these renders are somewhat better than those of test views: see
`pairs`. With `validation_scenes`, whole scenes are held out instead.
"""

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from nifi_ns.diffusion import NETWORK_ADAPTER_FILE, PROMPT_FILE, VAE_ADAPTER_FILE, Backbone
from nifi_ns.errors import NifiError
from nifi_ns.learning import (
    TrainingLog,
    checkpoint_to_write,
    load_optimizers,
    processes,
    read_adapters,
    read_state,
    save_checkpoint,
)
from nifi_ns.pairs import Input, PairCrops, PairFolder, fingerprints, matching_scenes, split_validation
from nifi_ns.restore._config import TrainingConfig
from nifi_ns.restore._description import RESTORER_FILE, Description, RestorerSettings, packaged_weights
from nifi_ns.restore._perceptual import Perceptual, perceptual_loss
from nifi_ns.restore._restorer import Restorer
from nifi_ns.restore._selection import Selection, Trained
from nifi_ns.restore._updates import Updates

_MAY_CHANGE = frozenset({"steps", "log_every", "eval_every", "eval_views", "checkpoint_every", "max_bad_steps"})
_MAY_CHANGE |= {"gradient_accumulation", "gradient_checkpointing"}
"""Options that may change when a training is resumed."""


class Trainer:
    """Trains phi- and phi+ of a backbone on pair folders, and writes a restorer to `output`.

    `output` is a folder that `Restorer.from_pretrained` reads (the best step). It also holds
    `checkpoints/last.safetensors` (to resume from), `checkpoints/last/` (the last step as a restorer), `logs/` (losses
    as CSV, JSON and TensorBoard events; evaluations as JSON), `images/` (degraded | restored | photo) and
    `metrics.json` (all test views). With several processes (see `processes`), the first one evaluates and writes
    everything while the others wait.
    """

    def __init__(
        self,
        backbone: Backbone,
        folders: Sequence[PairFolder],
        output: Path | str,
        config: TrainingConfig | None = None,
        *,
        inputs: Input = "degraded",
        start: Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ):
        """Check all inputs before long work starts.

        Args:
            backbone: the backbone, without adapters.
            folders: pairs to train on.
            output: folder to write to.
            config: default: the paper's.
            inputs: which images of the pairs to restore.
            start: folder of a restorer with the same backbone and rank, whose adapter initialises phi-.
            resume: continue the training in `output`.
            overwrite: delete the training in `output`.

        Raises:
            NifiError: if pairs, configuration, backbone and `start` do not match, the weights of a loss are not
                available, `output` already holds a training, or, with `resume`, holds none or one with other settings.
        """
        self.backbone, self.output, self.config = backbone, Path(output), config or TrainingConfig()
        self._checkpoint = checkpoint_to_write(self.output, resume, overwrite)
        self._check_crop()
        self._settings = self._gather_settings(folders, inputs, start)
        state = self._read_state() if resume else None
        perceptual = self._load_perceptual()
        scenes = matching_scenes(folders, self.config.data.validation_scenes)
        train, validation = split_validation(folders, validation_scenes=scenes)
        self._crops = self._make_crops(folders, inputs, train)
        self._prepare_backbone(start)
        self._updates = Updates(backbone, self.config, perceptual)
        self._selection = self._make_selection(folders, inputs, validation, scenes)
        self._step = 0
        self._recent: dict[str, list[float]] = {}  # losses since the last row of the tables
        if overwrite and processes.index() == 0:
            self._delete_old()
        if state is not None:
            self._load(state)

    # -- setup, in order -----------------------------------------------------------------------------------------------

    def _check_crop(self) -> None:
        crop, multiple = self.config.data.crop, self.backbone.pixel_multiple
        if crop % multiple:
            raise NifiError(f"crop {crop}: {self.backbone.name} needs a multiple of {multiple}")

    def _gather_settings(self, folders: Sequence[PairFolder], inputs: Input, start: Path | None) -> dict[str, Any]:
        """Return everything that determines the result, as JSON values. Saved with it, and compared on resuming."""
        backbone = self.backbone
        settings = self.config.options() | {"backbone": backbone.name, "prompt": backbone.prompt.text}
        settings |= {"weights": packaged_weights(backbone.name), "inputs": inputs, "pairs": fingerprints(folders)}
        if start is not None:
            description = Description.read(start)
            description.check_backbone(backbone.name, start)
            settings["start"] = description.files
        return json.loads(json.dumps(settings))

    def _load_perceptual(self) -> Perceptual:
        objective = self.config.objective
        metric = objective.perceptual_metric if objective.perceptual > 0 else "l1"  # l1 needs no weights
        return perceptual_loss(metric, self.backbone.device)

    def _make_crops(
        self, folders: Sequence[PairFolder], inputs: Input, names: Mapping[str, Sequence[str]]
    ) -> PairCrops:
        config, data = self.config, self.config.data
        return PairCrops(
            folders,
            size=data.crop,
            seed=config.seed,
            length=config.steps * config.batch_size,
            inputs=inputs,
            names=names,
            rate_weights=data.rate_weights,
            attended_photos=data.attended_photos,
        )

    def _prepare_backbone(self, start: Path | None) -> None:
        """Add adapters initialised from the seed, and load phi- from `start` if given."""
        adapters = self.config.adapters
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            self.backbone.add_adapters(adapters.rank, adapters.lora_alpha, vae_encoder=adapters.vae_encoder)
        if start is not None:
            self.backbone.load_adapter(start, "phi_minus")
        if self.config.gradient_checkpointing:
            self.backbone.checkpoint_gradients()

    def _make_selection(
        self,
        folders: Sequence[PairFolder],
        inputs: Input,
        validation: Mapping[str, Sequence[str]],
        scenes: frozenset[str],
    ) -> Selection:
        config = self.config
        settings = RestorerSettings(
            config.objective.t0,
            config.objective.noise_scale,
            decode=config.decode,
            attended_photos=config.data.attended_photos,
            input=inputs,
        )
        restorer = Restorer(self.backbone, settings, {"settings": self._settings})
        return Selection(
            restorer,
            folders,
            validation,
            self.output,
            choose_by=config.evaluation.choose_by,
            limit=config.evaluation.eval_views,
            validation_scenes=scenes,
        )

    def _delete_old(self) -> None:
        """Delete everything that an earlier training wrote, restorer.json first: no restorer without its files."""
        for name in (RESTORER_FILE, NETWORK_ADAPTER_FILE, VAE_ADAPTER_FILE, PROMPT_FILE, "metrics.json", "metrics.csv"):
            (self.output / name).unlink(missing_ok=True)
        for name in ("checkpoints", "images", "logs"):
            shutil.rmtree(self.output / name, ignore_errors=True)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def train(self) -> Trained:
        """Train to the last step, evaluate, and return the chosen restorer."""
        size, last = self.config.batch_size, self.config.steps
        batches = (range(step * size, (step + 1) * size)[self._updates.samples] for step in range(self._step, last))
        loader = DataLoader(self._crops, batch_sampler=[list(batch) for batch in batches])
        if processes.index() == 0:
            return processes.from_first(self._train_first(loader))
        for batch in loader:
            self._updates.update(batch, self._step)
            self._step += 1
        return processes.from_first(None)

    def _train_first(self, loader: Iterable[dict[str, Tensor]]) -> Trained:
        """Train in the first process, which also logs, evaluates and saves."""
        steps, every, log = self.config.steps, self.config.evaluation, TrainingLog(self.output / "logs", self._step)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
            task = progress.add_task("training", total=steps, completed=self._step)
            try:
                for batch in loader:
                    for name, value in self._updates.update(batch, self._step).items():
                        self._recent.setdefault(name, []).append(value)
                    self._step += 1
                    if self._step % every.log_every == 0:
                        loss = self._log_losses(log)
                        progress.update(task, description=f"training, loss {loss:.4f}")
                    evaluates = self._step % every.eval_every == 0 or self._step == steps
                    if evaluates:
                        progress.update(task, description="evaluating")
                        with self._updates.averaged():
                            self._selection.evaluate(self._step, log)
                    if evaluates or self._step % every.checkpoint_every == 0:
                        self._save()
                        log.flush()
                    progress.update(task, completed=self._step)
            finally:
                log.close()
        with self._updates.averaged():
            return self._selection.finish()

    def _log_losses(self, log: TrainingLog) -> float:
        """Write the mean losses since the last row, and return the mean of the total loss."""
        means = {name: sum(values) / len(values) for name, values in self._recent.items()}
        log.add(self._step, {**means, "skipped": self._updates.skipped})
        self._recent.clear()
        return means.get("loss", math.nan)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        state = {"step": self._step, "recent": self._recent, "settings": self._settings}
        state |= {"selection": self._selection.state(), "updates": self._updates.state()}
        adapters = {**self._updates.adapters(), "best": self._selection.adapter}
        save_checkpoint(self._checkpoint, adapters, self._updates.torch_optimizers, state)

    def _read_state(self) -> dict[str, Any]:
        state = read_state(self._checkpoint)
        older = {**TrainingConfig().options(), **state["settings"]}  # older checkpoints lack newer options
        before, now = (
            {name: value for name, value in json.loads(json.dumps(settings)).items() if name not in _MAY_CHANGE}
            for settings in (older, self._settings)
        )
        if differing := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
            raise NifiError(f"{self.output} was trained with other settings: resume with its {', '.join(differing)}")
        return state

    def _load(self, state: dict[str, Any]) -> None:
        adapters = read_adapters(self._checkpoint)
        self._updates.load(adapters, state["updates"])
        load_optimizers(self._checkpoint, self._updates.torch_optimizers)
        self._selection.load_state(state["selection"], adapters.get("best", {}))
        self._step, self._recent = int(state["step"]), state["recent"]
