"""Selection of the best step and strength of a training, chosen on validation views and reported on test views."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nifi_ns import metrics, results
from nifi_ns.errors import NifiError
from nifi_ns.files import write_text
from nifi_ns.learning import TrainingLog, comparison_grid
from nifi_ns.pairs import PairFolder
from nifi_ns.restore._evaluation import (
    STRENGTHS,
    Choice,
    ViewScores,
    by_folder,
    choose_strength,
    mean_change,
    score_views,
    spread_views,
)
from nifi_ns.restore._restorer import Restorer

_GRID_VIEWS = 4


@dataclass(frozen=True)
class Trained:
    """The result of a training."""

    output: Path
    """Folder of the restorer."""
    step: int
    """Training step of the chosen restorer."""
    choice: Choice
    """Its strength and its change of error on validation views."""
    rows: list[results.Row]
    """Mean metrics over all test views before and after, for each scene at each rate."""


class Selection:
    """Evaluates a restorer during training and saves it to `output` when it is the best so far.

    The best restorer has the lowest `Choice.error_change` on the validation views, at its best strength. Without
    validation views (all scenes have fewer than four training views), the last step is saved at full strength.
    """

    def __init__(
        self,
        restorer: Restorer,
        folders: Sequence[PairFolder],
        validation: Mapping[str, Sequence[str]],
        output: Path,
        *,
        choose_by: Sequence[str],
        limit: int,
        validation_scenes: Collection[str] = (),
    ):
        """Select by the mean error change of the metrics in `choose_by`.

        `validation` holds names of views by scene. Each evaluation measures about `limit` of them and about `limit`
        test views. Rows of `validation_scenes` have `held_out="scene"`.

        Raises:
            NifiError: if a metric in `choose_by` is unknown.
        """
        if unknown := [name for name in choose_by if name not in metrics.METRICS]:
            raise NifiError(f"choose_by: unknown metric {unknown[0]!r}, expected some of {', '.join(metrics.METRICS)}")
        self.best: Choice | None = None
        """Choice of the best restorer, which is in `output`; None before the first evaluation."""
        self.step = 0
        """Training step of the best restorer."""
        self.adapter: dict[str, Tensor] = {}
        """phi- of the best restorer, on the CPU."""
        self._restorer, self._folders, self._output, self._names = restorer, folders, output, tuple(choose_by)
        self._validation_scenes = validation_scenes
        self._history: list[dict[str, Any]] = []
        self._validation = [
            (folder, "train", name)
            for folder, name in spread_views(folders, lambda folder: validation[folder.scene], limit)
        ]
        self._test = [
            (folder, "test", name) for folder, name in spread_views(folders, lambda f: f.splits["test"], limit)
        ]

    def evaluate(self, step: int, log: TrainingLog) -> None:
        """Measure the current adapter, log the result with an image, and save the adapter if it is the best so far."""
        scored = self._score(self._validation, STRENGTHS)
        choice = choose_strength(scored) if scored else Choice(1.0, 0.0)
        tested = self._score(self._test, (1.0,))
        record = {"step": step, "strength": choice.strength, "error_change": choice.error_change}
        record |= {"validation": _changes(scored), "test": _changes(tested)}
        self._history.append(record)
        write_text(self._output / "logs" / "evaluation.json", json.dumps(self._history, indent=1) + "\n")
        for split in ("validation", "test"):
            scalars = {f"{label}/{name}": v for label, values in record[split].items() for name, v in values.items()}
            log.add_scalars(step, scalars, f"error change, {split}")
        log.add_scalars(step, {"strength": choice.strength, "error_change": choice.error_change}, "choice")
        if shown := (tested or scored):
            rows = [score.pictures for score in shown[:: max(1, len(shown) // _GRID_VIEWS)][:_GRID_VIEWS]]
            log.add_image(step, comparison_grid(rows), self._output / "images" / f"step_{step:06d}.png")
        if self.best is None or not scored or choice.error_change < self.best.error_change:
            self.best, self.step = choice, step
            state = self._restorer.backbone.adapter_state_dict("phi_minus")
            self.adapter = {key: value.detach().cpu().clone() for key, value in state.items()}
            self._save(self._output, record)

    def finish(self) -> Trained:
        """Save the last step to `checkpoints/last`, and write the best step's test metrics to `metrics.json`."""
        assert self.best is not None
        backbone = self._restorer.backbone
        self._save(self._output / "checkpoints" / "last", self._history[-1])
        last = {key: value.detach().clone() for key, value in backbone.adapter_state_dict("phi_minus").items()}
        backbone.load_adapter_state_dict("phi_minus", self.adapter)
        rows = []
        for folder in (folder for folder in self._folders if folder.splits["test"]):
            views = [(folder, "test", name) for name in folder.splits["test"]]
            scores = self._score(views, (self.best.strength,), metrics.METRICS, pictures=False)
            size, count = folder.bytes, folder.gaussians
            before = metrics.mean([score.before for score in scores])
            after = metrics.mean([score.after[self.best.strength] for score in scores])
            given: results.Variant = "compressed" if self._restorer.input == "degraded" else "referenced"
            kept: dict[results.Variant, dict[str, float | None]] = {given: before, "restored": after}
            for variant, values in kept.items():
                more = {"held_out": "scene"} if folder.scene in self._validation_scenes else {}
                rows.append(results.Row(folder.scene, variant, size, count, values, folder.rate, more=more))
        backbone.load_adapter_state_dict("phi_minus", last)
        results.save(self._output / "metrics.json", rows, step=self.step, strength=self.best.strength)
        return Trained(self._output, self.step, self.best, rows)

    def state(self) -> dict[str, Any]:
        """Return the state without the adapter, as JSON values."""
        best = None if self.best is None else asdict(self.best)
        return {"best": best, "step": self.step, "history": self._history}

    def load_state(self, state: dict[str, Any], adapter: dict[str, Tensor]) -> None:
        """Restore the values of `state` and `adapter`."""
        self.best = None if state["best"] is None else Choice(**state["best"])
        self.step, self._history, self.adapter = state["step"], state["history"], adapter

    def _score(
        self,
        views: Sequence[tuple[PairFolder, str, str]],
        strengths: Sequence[float],
        names: Sequence[str] = (),
        *,
        pictures: bool = True,
    ) -> list[ViewScores]:
        """Return the scores of views. The restorer runs once per view, because strengths are blends."""
        restorer = self._restorer
        return score_views(
            views,
            lambda image, photos: restorer(image, strength=1.0, attended_photos=photos),
            attended_photos=restorer.settings.attended_photos,
            strengths=strengths,
            inputs=restorer.input,
            names=names or self._names,
            pictures=pictures,
        )

    def _save(self, directory: Path, record: Mapping[str, Any]) -> None:
        """Save the current adapter as a restorer, with the best strength in its evaluation `record`."""
        criterion = f"least mean log error of {', '.join(self._names)} on validation views, none worse than before"
        about = {**self._restorer.training, "evaluation": dict(record), "chosen_by": criterion}
        settings = replace(self._restorer.settings, strength=record["strength"])
        Restorer(self._restorer.backbone, settings, about).save_pretrained(directory)


def _changes(scores: Sequence[ViewScores]) -> dict[str, dict[str, float]]:
    """Return the mean error change at full strength, by folder and metric."""
    return {group[0].folder.label: mean_change(group, 1.0) for group in by_folder(scores)}
