"""The results of a search: trials, Pareto front, importance of the settings, and the files that record them."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from mlpconv.files import json_bytes, write_atomic
from mlpconv.plots import pareto, save_figure
from mlpconv.search.journal import file_lock
from mlpconv.search.space import Range, settings_of
from mlpconv.search.studies import StudyFolder
from mlpconv.search.trials import errors_of
from mlpconv.training import Recipe

__all__ = ["SearchResult", "TrialRow", "draw", "read_result", "write_result"]

MIN_TRIALS = 8  # completed trials, for the importance of settings
QUANTILE = 0.25  # the importance is that of being among this fraction of the trials with the lowest error
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True)
class TrialRow:
    """One trial: how it ended, its lowest validation error, its cost and its settings."""

    number: int
    state: str
    """complete, pruned, failed, open (running or interrupted), or refused (over the limits, never trained)."""
    error: float | None
    macs: int | None
    parameters: int | None
    settings: dict[str, Any]
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        row = {"trial": self.number, "state": self.state, "error": self.error, "macs": self.macs}
        return row | {"parameters": self.parameters, **self.settings, "reason": self.reason}


@dataclass(frozen=True)
class SearchResult:
    """All trials of a search, those of its Pareto front by cost, and the importance of each setting for the error."""

    folder: Path
    trials: list[TrialRow]
    front: list[TrialRow] = field(default_factory=list)
    importance: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> TrialRow | None:
        """The completed trial of the lowest error."""
        return self.front[-1] if self.front else None

    def counts(self) -> dict[str, int]:
        """Return the number of trials in each state."""
        states = [row.state for row in self.trials]
        return {state: states.count(state) for state in dict.fromkeys(states)}

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "folder": str(self.folder),
            "trials": self.counts(),
            "pareto": [row.to_dict() for row in self.front],
            "importance": self.importance,
        }


def read_result(study: optuna.Study, folder: StudyFolder, ranges: Sequence[Range]) -> SearchResult:
    """Return the result of a study as it is now."""
    rows = [row_of(trial, ranges) for trial in study.get_trials(deepcopy=False)]
    return SearchResult(folder.path, rows, pareto_front(rows), importance(study))


def row_of(trial: FrozenTrial, ranges: Sequence[Range]) -> TrialRow:
    """Return a trial as a row of the table."""
    state = STATES.get(trial.state, "open")
    attributes = trial.user_attrs
    if trial.constraints or "refused" in attributes:
        state = "refused"
    error = trial.values[0] if trial.values else min(errors_of(attributes).values(), default=None)
    sampled = [item for item in ranges if item.name in trial.params]
    reason = attributes.get("reason") or attributes.get("refused") or ""
    cost = (attributes.get("macs"), attributes.get("parameters"))
    return TrialRow(trial.number, state, error, *cost, settings_of(sampled, trial.params), reason)


def pareto_front(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Return the completed trials that no other one beats in both error and multiply-adds, by ascending cost."""
    front: list[TrialRow] = []
    complete = [row for row in rows if row.state == "complete"]
    for row in sorted(complete, key=lambda row: (row.macs, row.error, row.number)):
        if not front or (row.error or 0.0) < (front[-1].error or 0.0):
            front.append(row)
    return front


def importance(study: optuna.Study) -> dict[str, float]:
    """Return the importance of each setting for a low error (PED-ANOVA), the largest first; {} for too few trials."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < MIN_TRIALS:
        return {}
    single = optuna.create_study()
    single.add_trials(
        [
            optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=trial.values[0])
            for trial in complete
        ]
    )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=QUANTILE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the errors of many trials may be equal
        shares = get_param_importances(single, evaluator=evaluator)
    return {name: round(share, 3) for name, share in shares.items()}


def write_result(study: optuna.Study, folder: StudyFolder, ranges: Sequence[Range], base: Recipe) -> SearchResult:
    """Write trials.csv, the recipes of the Pareto front and best.json; return the result."""
    with file_lock(folder.lock):
        result = read_result(study, folder, ranges)
        write_atomic(folder.path / "trials.csv", table(result.trials, ranges))
        names = {f"trial-{row.number:04d}.json" for row in result.front}
        for row in result.front:
            write_atomic(folder.recipes / f"trial-{row.number:04d}.json", recipe_file(row, base))
        for path in folder.recipes.glob("trial-*.json"):
            if path.name not in names:
                path.unlink()
        if result.best is not None:
            write_atomic(folder.path / "best.json", recipe_file(result.best, base))
    return result


def draw(result: SearchResult) -> None:
    """Write pareto.png, if a trial is complete."""
    if result.best is not None:
        save_figure(pareto([row.to_dict() for row in result.trials]), result.folder / "pareto.png")


def recipe_file(row: TrialRow, base: Recipe) -> bytes:
    """Return the recipe of a trial as a JSON file."""
    about = {
        "what": f"Trial {row.number} of a search with mlpconv.",
        "validation_error": row.error,
        "multiply_adds": row.macs,
        "parameters": row.parameters,
        "searched": row.settings,
    }
    return json_bytes({"about": about, "settings": base.with_settings(**row.settings).to_dict()})


def table(rows: Sequence[TrialRow], ranges: Sequence[Range]) -> bytes:
    """Return all trials as CSV."""
    text = io.StringIO()
    names = [item.name for item in ranges]
    columns = ["trial", "state", "error", "macs", "parameters", *names, "reason"]
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.to_dict() for row in rows)
    return text.getvalue().encode()
