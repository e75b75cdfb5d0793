"""The search: run one trial after another until the budget is spent; any number of processes may do so at once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from mlpconv.data import Dataset
from mlpconv.errors import Interrupted, MissingSplit, MlpconvError, TrainingError, UsageError
from mlpconv.fitting import Run, fit
from mlpconv.search.outcome import SearchResult, draw, read_result, write_result
from mlpconv.search.space import Range, parse_space, settings_of
from mlpconv.search.studies import Definition, StudyFolder, cannot_write, open_study
from mlpconv.search.trials import CostLimits, behind, cost_of, epoch_key, errors_of, take_trial
from mlpconv.text import option
from mlpconv.training import Progress, Recipe, find_recipe
from mlpconv.training.combinations import SCRATCH
from mlpconv.training.plan import apply_settings
from mlpconv.training.progress import EpochMetrics
from mlpconv.training.run_data import data_name, load_dataset, published_name

__all__ = ["SearchResult", "run_search"]

SEARCHES = Path("searches")
MAX_FAILURES = 10  # in a row
PRUNE_FROM = 1 / 3  # of the epochs; earlier errors say little
DATA_SETTINGS = ("size", "fit", "val_fraction", "seed")


def run_search(
    data: str | Path | Dataset,
    over: Sequence[str],
    *,
    recipe: str | Path | Recipe | None = None,
    out: str | Path | None = None,
    seconds: float | None = None,
    trials: int | None = None,
    limits: CostLimits | None = None,
    store: str | None = None,
    prune: bool = True,
    data_root: str | Path | None = None,
    log: Callable[[str], object] = lambda text: None,  # noqa: ARG005
    **settings: Any,
) -> SearchResult:
    """Search recipe settings for networks of low error and low cost, and return all trials with their Pareto front.

    `over` holds the ranges ("width=0.25..2", "kernel=3,5"); `recipe` and `settings` are what all trials share. The
    search lives in the folder `out` (default searches/NAME); more calls with the same arguments, in any number of
    processes and machines that share the folder, work on the same trials. It ends after `seconds`, or when the folder
    holds `trials`. `limits` bound the cost of a network, `prune` stops a trial whose error is above the median of
    trials that cost at most as much, `store` is the URL of a database server instead of a journal file. `log` gets a
    line for every trial. Raises UsageError, RunFolderError for a folder or store that cannot be used, TrainingError if
    many trials fail in a row, and Interrupted.
    """
    if seconds is None and trials is None:
        raise UsageError(f"a search needs an end: give {option('budget', '2h')} or {option('trials', 50)}.")
    name = data_name(data)
    ranges, base = parse_space(over), apply_settings(base_recipe(recipe, published_name(data)), settings)
    if base.source != SCRATCH:
        raise UsageError(
            f"{option('source', base.source)} is not accepted: a search trains from random weights, whose network and "
            "cost it varies."
        )
    source = Source(data, data_root)
    dataset = source.open(base)
    if "val" not in dataset.splits:
        raise MissingSplit(f"{dataset.name} has no val split to compare trials on: pass {option('val_fraction', 0.2)}.")
    limits = limits or CostLimits()
    definition = Definition(
        dataset.name,
        dataset.fingerprint,
        tuple(map(str, ranges)),
        base.to_dict(),
        limits.macs,
        limits.parameters,
    )
    folder = StudyFolder(Path(out) if out is not None else SEARCHES / name)
    folder.create()
    study = open_study(folder, store, definition)
    worker = Worker(study, folder, ranges, base, source, limits, prune, log)
    try:
        try:
            worker.run(None if seconds is None else time.monotonic() + seconds, trials)
        finally:
            result = read_result(study, folder, ranges)
            draw(result)
    except OSError as error:
        raise cannot_write(folder.path, error) from error
    return result


def base_recipe(recipe: str | Path | Recipe | None, name: str | None) -> Recipe:
    """Return a Recipe as it is, or find it for the published data set `name`; the default is `fast`."""
    return recipe if isinstance(recipe, Recipe) else find_recipe(recipe or "fast", name)


class Source:
    """Open the data of a recipe, and keep them for the next trial if it uses the same settings of the data."""

    def __init__(self, data: str | Path | Dataset, root: str | Path | None) -> None:
        self.data, self.root = data, root
        self.last: tuple[tuple[Any, ...], Dataset] | None = None

    def open(self, recipe: Recipe) -> Dataset:
        """Return the data set, resized and divided as the recipe says."""
        key = tuple(getattr(recipe, name) for name in DATA_SETTINGS)
        if self.last is None or self.last[0] != key:
            self.last = (key, load_dataset(self.data, recipe, self.root))
        return self.last[1]


class Stopped(Exception):
    """A trial is pruned, or the time of the search is over."""


class Worker:
    """One process of a search."""

    def __init__(
        self,
        study: optuna.Study,
        folder: StudyFolder,
        ranges: Sequence[Range],
        base: Recipe,
        source: Source,
        limits: CostLimits,
        prune: bool,
        log: Callable[[str], object],
    ) -> None:
        self.study, self.folder, self.ranges, self.base = study, folder, ranges, base
        self.source, self.limits, self.prune, self.log = source, limits, prune, log
        self.failures = 0

    def recipe(self, values: dict[str, Any]) -> Recipe:
        """Return the recipe of sampled values."""
        return self.base.with_settings(**settings_of(self.ranges, values))

    def excess(self, values: dict[str, Any]) -> float:
        """Return by which fraction the network of sampled values exceeds the limits."""
        recipe = self.recipe(values)
        return self.limits.excess(cost_of(self.source.open(recipe), recipe))

    def run(self, deadline: float | None, limit: int | None) -> None:
        """Run trials until the deadline (of the monotonic clock), or until `limit` trials exist."""
        while deadline is None or time.monotonic() < deadline:
            with take_trial(self.study, self.folder, self.ranges, limit, self.base.seed, self.excess) as trial:
                if trial is None:
                    return
                try:
                    self.train(trial, deadline)
                finally:
                    write_result(self.study, self.folder, self.ranges, self.base)

    def train(self, trial: Trial, deadline: float | None) -> None:
        """Run or continue a trial, and record how it ended; at the deadline it stays open, to be continued."""
        recipe = self.recipe(trial.params)
        dataset, run_folder = self.source.open(recipe), self.folder.run(trial.number)
        cost = cost_of(dataset, recipe)
        annotate(trial, macs=cost.macs, parameters=cost.parameters)
        watch = TrialProgress(self, trial, recipe, cost.macs, deadline)
        try:
            run = fit(dataset, recipe, out=run_folder, resume=True, progress=watch, report=False)
        except Stopped:
            if not watch.pruned:
                self.log(f"trial {trial.number}: the time is over; its state is saved")
                return
            self.finish(trial, TrialState.PRUNED, f"pruned after epoch {watch.last}, error {watch.error:.2%}")
        except Interrupted as stop:
            message = f"search stopped in trial {trial.number}, whose state is saved: run the same command to continue."
            raise Interrupted(message, stop.signal_number, self.folder.path) from stop
        except (TrainingError, UsageError) as error:
            self.fail(trial, error)
        else:
            self.complete(trial, run, cost.macs)

    def complete(self, trial: Trial, run: Run, macs: int) -> None:
        """Record the error of a finished trial."""
        best = run.classifier.info["metrics"]
        error = 1 - best["val_accuracy"]
        annotate(trial, seconds=run.history[-1]["seconds"], epoch=best["epoch"])
        self.failures = 0
        self.finish(trial, TrialState.COMPLETE, f"error {error:.2%}, {macs / 1e6:.3g} M multiply-adds", (error, macs))

    def fail(self, trial: Trial, error: MlpconvError) -> None:
        """Record why a trial failed; raises the error after many in a row."""
        annotate(trial, reason=str(error))
        self.failures += 1
        self.finish(trial, TrialState.FAIL, f"failed: {error}")
        if self.failures >= MAX_FAILURES:
            raise TrainingError(f"{MAX_FAILURES} trials failed in a row; the last one: {error}") from error

    def finish(self, trial: Trial, state: TrialState, text: str, values: tuple[float, float] | None = None) -> None:
        """Record the end of a trial, remove its checkpoints unless it failed, and log it."""
        self.study.tell(trial.number, values, state)
        if state is not TrialState.FAIL:
            shutil.rmtree(self.folder.run(trial.number) / "checkpoints", ignore_errors=True)
        described = " ".join(f"{key}={value}" for key, value in settings_of(self.ranges, trial.params).items())
        self.log(f"trial {trial.number}: {described}: {text}")

    def stop(self, trial: Trial, macs: int, epoch: int, epochs: int, error: float) -> bool:
        """Record the error after an epoch, and return whether to prune the trial."""
        annotate(trial, **{epoch_key(epoch): error})
        if not self.prune or epoch == epochs or epoch < PRUNE_FROM * epochs:
            return False
        return behind(self.study.get_trials(deepcopy=False), trial.number, macs, epoch, error)


def annotate(trial: Trial, **values: Any) -> None:
    """Record facts about a trial."""
    for key, value in values.items():
        trial.set_user_attr(key, value)


class TrialProgress(Progress):
    """Follow the training of a trial; stop it by an exception, so that its last checkpoint is kept."""

    def __init__(self, worker: Worker, trial: Trial, recipe: Recipe, macs: int, deadline: float | None) -> None:
        self.worker, self.trial, self.recipe, self.macs, self.deadline = worker, trial, recipe, macs, deadline
        self.last, self.pruned = 0, False
        self.error = min(errors_of(trial.user_attrs).values(), default=1.0)

    def step(self, step: int, loss: float, accuracy: float, images: int) -> None:  # noqa: ARG002
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise Stopped

    def epoch(self, row: EpochMetrics, epochs: int) -> None:
        if row["val_accuracy"] is None:
            return
        self.last, self.error = row["epoch"], min(self.error, 1 - row["val_accuracy"])
        self.pruned = self.worker.stop(self.trial, self.macs, self.last, epochs, self.error)
        if self.pruned:
            raise Stopped
