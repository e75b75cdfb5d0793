"""Take the next trial of a study: an interrupted one, or a new one within the limits on its cost."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from mlpconv.analysis import profile
from mlpconv.data import Dataset
from mlpconv.errors import UsageError
from mlpconv.search.journal import file_lock, try_lock
from mlpconv.search.space import Range
from mlpconv.search.studies import StudyFolder
from mlpconv.training import Recipe
from mlpconv.training.network import make_model

__all__ = ["CostLimits", "NetworkCost", "behind", "cost_of", "epoch_key", "errors_of", "take_trial"]

MAX_REFUSED = 100  # proposals in a row that exceed the limits or cannot be built
STARTUP = 10  # trials at random before the sampler learns from them
MIN_RIVALS = 4  # trials that a median needs


@dataclass(frozen=True)
class NetworkCost:
    """What a network costs: its parameters, and its multiply-adds for one image."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class CostLimits:
    """The largest accepted cost; None for no limit."""

    macs: int | None = None
    parameters: int | None = None

    def excess(self, cost: NetworkCost) -> float:
        """Return by which fraction a cost exceeds the limits, 0 if it does not."""
        pairs = ((cost.macs, self.macs), (cost.parameters, self.parameters))
        return max([0.0, *(value / limit - 1 for value, limit in pairs if limit is not None)])


def cost_of(dataset: Dataset, recipe: Recipe) -> NetworkCost:
    """Return the cost of the recipe's network for this data; raises UsageError if it cannot be built."""
    import torch

    model = make_model(dataset, recipe, torch.device("cpu"))
    totals = profile(model, (dataset.channels, *dataset.size)).totals
    return NetworkCost(totals.params, totals.macs)


@contextmanager
def take_trial(
    study: optuna.Study,
    folder: StudyFolder,
    ranges: Sequence[Range],
    limit: int | None,
    seed: int,
    check: Callable[[dict[str, Any]], float],
) -> Iterator[Trial | None]:
    """Yield a trial that no other process runs; None if `limit` trials exist and none is left to continue.

    One process at a time takes a trial. It keeps the trial's claim locked until the context ends, or until it dies: a
    running trial whose claim is free was interrupted, and is continued. `check` returns the excess over the limits of
    sampled values, or raises UsageError.
    """
    claim = None
    with file_lock(folder.lock):
        trial, claim = interrupted(study, folder, ranges)
        if trial is None and (limit is None or counted(study) < limit):
            trial = propose(study, ranges, seed, check)
            claim = try_lock(folder.claim(trial.number))
    try:
        yield trial
    finally:
        if claim is not None:
            os.close(claim)


def interrupted(study: optuna.Study, folder: StudyFolder, ranges: Sequence[Range]) -> tuple[Trial | None, int | None]:
    """Return a running trial whose process has died, and its claim."""
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        claim = try_lock(folder.claim(frozen.number))
        if claim is not None:
            trial = Trial(study, frozen._trial_id)
            for item in ranges:  # those that the process had not sampled before it died
                suggest(trial, item)
            return trial, claim
    return None, None


def suggest(trial: Trial, item: Range) -> None:
    """Sample a value, or keep the one that the trial has."""
    if item.choices:
        trial.suggest_categorical(item.name, item.choices)
    elif item.integer:
        trial.suggest_int(item.name, int(item.low), int(item.high), log=item.log)
    else:
        trial.suggest_float(item.name, item.low, item.high, log=item.log)


def counted(study: optuna.Study) -> int:
    """Return the number of trials, without those that were refused before training."""
    return sum(
        not trial.constraints and "refused" not in trial.user_attrs for trial in study.get_trials(deepcopy=False)
    )


def propose(study: optuna.Study, ranges: Sequence[Range], seed: int, check: Callable[[dict[str, Any]], float]) -> Trial:
    """Sample a new trial within the limits; raises UsageError if there is none among many."""
    reason = ""
    for _ in range(MAX_REFUSED):
        study.sampler = sampler(seed, len(study.get_trials(deepcopy=False)))
        trial = study.ask()
        for item in ranges:
            suggest(trial, item)
        try:
            excess = check(trial.params)
        except UsageError as error:
            reason = str(error)
            trial.set_user_attr("refused", reason)
            study.tell(trial, state=TrialState.FAIL)
            continue
        if not excess:
            return trial
        reason = f"the last one exceeds them by {excess:.0%}"
        trial.set_constraint("excess", excess)
        study.tell(trial, state=TrialState.PRUNED)
    raise UsageError(
        f"none of {MAX_REFUSED} sampled networks can be trained within the limits ({reason}): raise the limits, or "
        "change the ranges."
    )


def sampler(seed: int, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of the trial with this number: its choice depends on the seed and the trials so far."""
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=4).digest()
    return optuna.samplers.TPESampler(seed=int.from_bytes(digest, "little"), n_startup_trials=STARTUP)


def epoch_key(epoch: int) -> str:
    """Return the name of the attribute that holds a trial's lowest error up to an epoch."""
    return f"error/{epoch:05d}"


def behind(trials: Sequence[FrozenTrial], number: int, macs: int, epoch: int, error: float) -> bool:
    """Return whether a trial's error is above the median, at the same epoch, of the trials that cost at most as much.

    The median needs at least four of them.
    """
    rivals = [
        errors_of(trial.user_attrs).get(epoch) for trial in trials if trial.number != number and costs(trial) <= macs
    ]
    known = [value for value in rivals if value is not None]
    return len(known) >= MIN_RIVALS and error > statistics.median(known)


def costs(trial: FrozenTrial) -> float:
    return float(trial.user_attrs.get("macs", "inf"))


def errors_of(attributes: Mapping[str, Any]) -> dict[int, float]:
    """Return the lowest error of a trial up to each epoch, from its attributes."""
    items = ((key.partition("error/")[2], value) for key, value in attributes.items())
    return {int(epoch): float(value) for epoch, value in items if epoch}
