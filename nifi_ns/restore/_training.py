"""Training a restorer: phi- and its critic phi+ in turn, on pairs of degraded views and photos.

Every random number follows from the seed and the step, and every crop from the seed and its number, so that a run which
was interrupted and resumed ends bit for bit (on a CPU) with what it would have ended with. Of several processes each
takes its share of every step's crops and numbers: how many there are changes nothing but the order of sums.

A part of the training views is held out to choose with: the best step, and the strength at which it is shown. The test
views are measured and never chosen by. Splats were fitted to the validation views, as to all training views, so their
renders are somewhat better than those of test views: see `pairs`. With `held_out_scenes` whole scenes are held out.
"""

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from nifi_ns.diffusion import AdapterName, Backbone
from nifi_ns.errors import NifiError
from nifi_ns.learning import (
    Learner,
    RunningMean,
    TrainingLog,
    checkpoint_to_write,
    learning_rate,
    load_optimizers,
    processes,
    read_adapters,
    read_state,
    save_checkpoint,
)
from nifi_ns.pairs import Inputs, PairCrops, PairFolder, fingerprints, held_out_scenes, split_validation
from nifi_ns.restore._config import TrainingConfig
from nifi_ns.restore._description import Description, RestorerSettings, packaged_weights
from nifi_ns.restore._objective import Draws, ObjectiveConfig, critic_loss, restorer_loss
from nifi_ns.restore._perceptual import perceptual_loss
from nifi_ns.restore._restorer import Restorer
from nifi_ns.restore._selection import Selection, Trained

ADAPTERS: tuple[AdapterName, ...] = ("phi_minus", "phi_plus")
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """Trains phi- and phi+ of a backbone on pair folders, and leaves a restorer in `output`.

    `output` becomes a folder that `Restorer.from_pretrained` reads (the best step), with `checkpoints/last.safetensors`
    (to resume from), `checkpoints/last/` (the last step as a restorer), `logs/` (losses as CSV, JSON and TensorBoard
    events; evaluations as JSON), `images/` (degraded | restored | photo) and `metrics.json` (all test views). Where
    there are several processes (see `processes`) the first writes all of it, and evaluates while the others wait.
    """

    def __init__(
        self,
        backbone: Backbone,
        folders: Sequence[PairFolder],
        output: Path | str,
        config: TrainingConfig | None = None,
        *,
        inputs: Inputs = "degraded",
        start: Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ):
        """Check all that can be checked before long work; `resume` what `output` holds, or `overwrite` it.

        `start` is the folder of a restorer of the same backbone and rank, whose adapter phi- begins as.

        Raises:
            NifiError: if pairs, configuration, backbone and `start` do not fit, weights of a loss cannot be had, or
                `output` already holds a training (or, with `resume`, none or one of other settings).
        """
        self.backbone, self.output, self.config = backbone, Path(output), config or TrainingConfig()
        self._checkpoint = checkpoint_to_write(self.output, resume, overwrite)
        config, objective = self.config, self.config.objective
        self._share = config.share(processes.count())
        self._mine = slice(self._share * processes.index(), self._share * (processes.index() + 1))
        if config.crop % backbone.pixel_multiple:
            raise NifiError(f"crop {config.crop}: {backbone.name} needs a multiple of {backbone.pixel_multiple}")
        self._settings = _json(config) | {"backbone": backbone.name, "prompt": backbone.prompt.text}
        self._settings |= {"weights": packaged_weights(backbone.name)}
        self._settings |= {"inputs": inputs, "pairs": fingerprints(folders)}
        if start is not None:
            begun = Description.read(start)
            begun.check_backbone(backbone.name, start)
            self._settings["start"] = begun.files
        state = self._read_state() if resume else {"step": 0, "skipped": 0, "recent": {}}
        metric = objective.perceptual_metric if objective.perceptual > 0 else "l1"
        self._perceptual = perceptual_loss(metric, backbone.device)
        held_out = held_out_scenes(folders, config.held_out_scenes)
        train, validation = split_validation(folders, held_out=held_out)
        self._crops = PairCrops(
            folders,
            size=config.crop,
            seed=config.seed,
            length=config.steps * config.batch_size,
            inputs=inputs,
            names=train,
            rate_weights=config.rate_weights,
            attended_photos=config.attended_photos,
        )
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            backbone.add_adapters(config.rank, config.lora_alpha, vae_encoder=config.vae_encoder)
        if start is not None:
            backbone.load_adapter(start, "phi_minus")
        if config.gradient_checkpointing:
            backbone.checkpoint_gradients()
        rates = dict(zip(ADAPTERS, (config.lr, config.critic_lr), strict=True))
        trained = ADAPTERS if objective.needs_critic else ADAPTERS[:1]
        self._learners = {
            name: Learner(backbone.adapter_parameters(name), rates[name], config, backbone.device) for name in trained
        }
        self._mean = RunningMean(backbone.adapter_parameters("phi_minus"), config.ema) if config.ema else None
        self._step, self._skipped = int(state["step"]), int(state["skipped"])
        self._skipped_in_a_row = 0
        self._recent: dict[str, list[float]] = state["recent"]  # losses since the last row of the tables
        shown = {"decode": config.decode, "attended_photos": config.attended_photos, "input": inputs}
        settings = RestorerSettings(objective.t0, objective.noise_scale, **shown)
        self._selection = Selection(
            Restorer(backbone, settings, {"settings": self._settings}),
            folders,
            validation,
            self.output,
            choose_by=config.choose_by,
            limit=config.eval_views,
            held_out=held_out,
        )
        if overwrite and processes.index() == 0:
            for name in ("checkpoints", "images", "logs"):
                shutil.rmtree(self.output / name, ignore_errors=True)
        if resume:
            self._load(state)

    def train(self) -> Trained:
        """Train to the end, evaluate, and return what was chosen. Interrupted, it resumes from the last checkpoint."""
        size = self.config.batch_size
        steps = [
            list(range(step * size, (step + 1) * size))[self._mine] for step in range(self._step, self.config.steps)
        ]
        batches = DataLoader(self._crops, batch_sampler=steps)
        if processes.index() == 0:
            return processes.from_first(self._lead(batches))
        for batch in batches:
            self._update(batch)
            self._step += 1
        return processes.from_first(None)

    def _lead(self, batches: Iterable[dict[str, Tensor]]) -> Trained:
        """Train as all processes do, and do what one does for all."""
        config, log = self.config, TrainingLog(self.output / "logs", self._step)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
            task = progress.add_task("training", total=config.steps, completed=self._step)
            try:
                for batch in batches:
                    for name, value in self._update(batch).items():
                        self._recent.setdefault(name, []).append(value)
                    self._step += 1
                    if self._step % config.log_every == 0:
                        means = {name: sum(values) / len(values) for name, values in self._recent.items()}
                        log.add(self._step, {**means, "skipped": self._skipped})
                        progress.update(task, description=f"training, loss {means.get('loss', math.nan):.4f}")
                        self._recent.clear()
                    evaluated = self._step % config.eval_every == 0 or self._step == config.steps
                    if evaluated:
                        progress.update(task, description="evaluating")
                        with self._averaged():
                            self._selection.evaluate(self._step, log)
                    if evaluated or self._step % config.checkpoint_every == 0:
                        self._save()
                        log.flush()
                    progress.update(task, completed=self._step)
            finally:
                log.close()
        with self._averaged():
            return self._selection.finish()

    def _update(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One update of each adapter on this process's share of a step; the losses of all of it that were finite."""
        config, device = self.config, self.backbone.device
        clean, degraded = (batch[key].to(device) for key in ("clean", "degraded"))
        size = self._share // config.gradient_accumulation
        parts = [slice(i, i + size) for i in range(0, self._share, size)]
        generator = torch.Generator().manual_seed(_seed(config.seed, self._step))
        side = config.crop // self.backbone.downsampling
        shape = (config.batch_size, self.backbone.latent_channels, side, side)
        draws, critic_draws = (Draws.of(shape, config.objective, generator).part(self._mine, device) for _ in ADAPTERS)
        rate, seen = learning_rate(self._step, config), None
        if config.attended_photos and (
            count := int(torch.randint(config.attended_photos + 1, (), generator=generator))
        ):
            seen = batch["attended_photos"][:, :count].to(device)
        autocast = torch.autocast(device.type, _PRECISIONS[config.precision], enabled=config.precision != "fp32")
        restored, terms = [], []
        for part in parts:
            drawn = draws.part(part, device)
            with autocast:
                images, others = (degraded[part], clean[part]), None if seen is None else seen[part]
                loss = restorer_loss(
                    self.backbone, *images, drawn, config.objective, self._perceptual, others, config.decode
                )
            self._learners["phi_minus"].add(loss.total / len(parts))
            restored.append(loss.restored)
            terms.append({"loss": loss.total.detach(), **loss.terms})
        losses = self._descend("phi_minus", terms, rate)
        if losses and self._mean is not None:
            self._mean.update(self._step)
        if losses and config.objective.needs_critic:
            terms = []
            for part, latents in zip(parts, restored, strict=True):
                drawn = critic_draws.part(part, device)
                with autocast:
                    critic = critic_loss(self.backbone, latents, drawn.timestep, drawn.noise, drawn.dropped)
                self._learners["phi_plus"].add(critic / len(parts))
                terms.append({"critic": critic.detach()})
            losses |= self._descend("phi_plus", terms, rate)
        return losses

    def _descend(self, name: AdapterName, parts: Sequence[dict[str, Tensor]], rate: float) -> dict[str, float]:
        """Update an adapter by the gradients it was given; the mean losses of all parts, or none if it was skipped."""
        means = torch.stack([torch.stack([*part.values()]) for part in parts]).mean(0)
        if self._learners[name].step(means, rate):
            self._skipped_in_a_row = 0
            return dict(zip(parts[0], means.tolist(), strict=True))
        self._skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= self.config.max_bad_steps:
            raise NifiError(
                f"step {self._step}: {self._skipped_in_a_row} losses in a row were not finite: "
                "train anew with lower learning rates, or in fp32"
            )
        return {}

    def _averaged(self) -> AbstractContextManager[None]:
        """Within this, phi- is its running mean, if there is one."""
        return nullcontext() if self._mean is None else self._mean.in_place()

    def _save(self) -> None:
        adapters = {name: self.backbone.adapter_state_dict(name) for name in ADAPTERS}
        adapters["best"] = self._selection.adapter
        if self._mean is not None:
            with self._averaged():
                adapters["mean"] = self.backbone.adapter_state_dict("phi_minus")
        state = {"step": self._step, "skipped": self._skipped, "recent": self._recent, "settings": self._settings}
        state |= {"selection": self._selection.state(), "scalers": self._scaler_states()}
        optimizers = {name: learner.optimizer for name, learner in self._learners.items()}
        save_checkpoint(self._checkpoint, adapters, optimizers, state)

    def _scaler_states(self) -> dict[str, Any]:
        return {name: learner.scaler.state_dict() for name, learner in self._learners.items()}

    def _read_state(self) -> dict[str, Any]:
        state = read_state(self._checkpoint)
        free = ("steps", "log_every", "eval_every", "eval_views", "checkpoint_every", "max_bad_steps")
        free += ("gradient_accumulation", "gradient_checkpointing")
        older = {**_json(TrainingConfig()), **state["settings"]}  # which may lack what is new
        older["objective"] = {**_json(ObjectiveConfig()), **older["objective"]}
        before, now = ({k: v for k, v in s.items() if k not in free} for s in (older, self._settings))
        if differing := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
            raise NifiError(f"{self.output} was trained with other settings: resume with its {', '.join(differing)}")
        return state

    def _load(self, state: dict[str, Any]) -> None:
        adapters = read_adapters(self._checkpoint)
        for name in ADAPTERS:
            self.backbone.load_adapter_state_dict(name, adapters[name])
        if self._mean is not None:
            with self._averaged():
                self.backbone.load_adapter_state_dict("phi_minus", adapters["mean"])
        load_optimizers(self._checkpoint, {name: learner.optimizer for name, learner in self._learners.items()})
        for name, learner in self._learners.items():
            learner.scaler.load_state_dict(state["scalers"][name])
        self._selection.load_state(state["selection"], adapters.get("best", {}))


def _seed(seed: int, step: int) -> int:
    """A seed for the noise of one step, unlike those of its neighbours and of the crops."""
    return int(np.random.SeedSequence([seed, step, 0xF1]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _json(config: TrainingConfig | ObjectiveConfig) -> dict[str, Any]:
    """The configuration as JSON would give it back, to compare with one that was read."""
    return json.loads(json.dumps(asdict(config)))
