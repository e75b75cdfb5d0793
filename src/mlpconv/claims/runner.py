"""Run claims: prove the exact ones, tune and train the arms of the measured ones, and write results.

Every finished training is kept in the cache at once, so an interrupted run goes on where it stopped. A result is a JSON
file with the hash of its hypothesis, and a compressed file with the predictions of every run.
"""

from __future__ import annotations

import io
import signal
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlpconv.claims.budget import BUDGET, load_images
from mlpconv.claims.claim_files import ClaimFile
from mlpconv.claims.first_layer import keep_filters
from mlpconv.claims.networks import Shape, cost_of_words, scale_words
from mlpconv.claims.results import result_header, result_path
from mlpconv.claims.run_cache import DamagedRun, RunCache
from mlpconv.claims.schema import Arm, Claim
from mlpconv.claims.trial import LEARNING_RATES, TUNING_SEEDS, ClaimRun, Measured, tuning_trials
from mlpconv.claims.workers import end_pool, run_trials, start_pool
from mlpconv.errors import Interrupted, UsageError
from mlpconv.files import json_bytes, write_atomic
from mlpconv.text import counted
from mlpconv.threads import one_thread

__all__ = ["LEAST_SEEDS", "SEEDS", "Plan", "RunSettings", "count_steps", "run_claims"]

SEEDS = 12
"""Paired runs per arm: with Holm's correction over all comparisons of a data set, 10 would be too few."""
LEAST_SEEDS = 3
Progress = Callable[[int], None]
Note = Callable[[str], None]


@dataclass(frozen=True)
class RunSettings:
    """How claims are run."""

    out: Path
    data: tuple[str, ...]
    seeds: int = SEEDS
    workers: int = 1

    def __post_init__(self) -> None:
        if self.seeds < LEAST_SEEDS:
            raise UsageError(
                f"Got {counted(self.seeds, 'paired run')}, too few for a verdict: give at least {LEAST_SEEDS}, or 10 "
                "for one other than 'indicated'."
            )
        if self.workers < 1:
            raise UsageError(f"workers is {self.workers}; at least 1 is accepted.")


@dataclass(frozen=True)
class Plan:
    """The final widths, cost and learning rate of an arm on one data set."""

    words: str
    cost: dict[str, int]
    learning_rate: float
    tuning: dict[str, float]
    """The error on held-out images by learning rate; empty for an arm that is not trained."""


def count_steps(files: Sequence[ClaimFile], settings: RunSettings) -> int:
    """Return the number of checks and trainings, for a progress bar."""
    total = 0
    for file in files:
        total += len(file.claim.checks)
        per_set = sum(
            settings.seeds + _tunes(arm) * len(LEARNING_RATES) * len(TUNING_SEEDS) for arm in file.claim.arms.values()
        )
        total += per_set * len([name for name in settings.data if name in file.claim.data])
    return total


def run_claims(files: Sequence[ClaimFile], settings: RunSettings, progress: Progress, note: Note) -> None:
    """Run claims and write their results to `settings.out`; raise Interrupted after Ctrl-C, keeping finished runs."""
    done = 0

    def advance(count: int = 1) -> None:
        nonlocal done
        done += count
        progress(done)

    pool = start_pool(settings.workers) if any(file.claim.comparisons for file in files) else None
    try:
        for file in files:
            if file.claim.checks:
                _prove(file, settings.out, advance)
            for data in settings.data:
                if data in file.claim.data and file.claim.comparisons:
                    _Experiment(file, data, settings, pool, advance, note).run()
    except KeyboardInterrupt as stop:
        end_pool(pool, now=True)
        raise Interrupted(
            f"interrupted after {counted(done, 'run')}, kept in {settings.out}: the same command resumes.",
            stop.signal_number if isinstance(stop, Interrupted) else signal.SIGINT,
        ) from stop
    finally:
        end_pool(pool)


def _tunes(arm: Arm) -> bool:
    return arm.epochs > 0


def _prove(file: ClaimFile, out: Path, advance: Callable[[], None]) -> None:
    """Try every check of a claim on its random cases and write the largest deviations."""
    checks = []
    with one_thread():
        for index, check in enumerate(file.claim.checks):
            rng = np.random.default_rng([file.claim.number or 0, index])
            worst = max(float(check.deviation(rng)) for _ in range(check.cases))
            checks.append({"statement": check.statement, "cases": check.cases, "bound": check.bound, "worst": worst})
            advance()
    path = result_path(out, "exact", file.claim.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json_bytes(result_header(file) | {"data": "exact", "checks": checks}))


class _Experiment:
    """The runs of one claim on one data set."""

    def __init__(
        self, file: ClaimFile, data: str, settings: RunSettings, pool: ProcessPoolExecutor | None,
        advance: Callable[[], None], note: Note,
    ) -> None:  # fmt: skip
        self.file, self.data, self.settings, self.pool = file, data, settings, pool
        self.advance, self.note = advance, note
        self.cache = RunCache(settings.out / "runs")
        self.cpu_seconds = 0.0

    @property
    def claim(self) -> Claim:
        return self.file.claim

    def run(self) -> None:
        """Tune and train every arm, and write the result, the predictions, and the filters where they are measured."""
        trials = self._first_trials()
        plans = self._tune(trials)
        pairs = {
            (arm, seed): replace(trial, seed=seed, learning_rate=plans[arm].learning_rate)
            for arm, trial in trials.items()
            for seed in range(1, self.settings.seeds + 1)
        }
        results = self._results(list(pairs.values()))
        runs = {arm: [results[pairs[arm, seed]] for seed in range(1, self.settings.seeds + 1)] for arm in trials}
        self._write(plans, runs)
        keep_filters(self.file, self.data, self.settings.out, self.note)

    def _first_trials(self) -> dict[str, ClaimRun]:
        """Return a trial for each arm, with the widths scaled to equal cost."""
        shape = load_images(self.data).shape
        shape = shape._replace(side=2 * shape.side) if self.claim.canvas else shape
        measure = self.file.hypothesis if self.claim.measure else ""
        return {
            name: ClaimRun(
                self.data, _final_words(self.claim, arm, shape), 0, LEARNING_RATES[1], arm.epochs, arm.train_images,
                arm.deepen, self.claim.canvas, measure=measure,
            )
            for name, arm in self.claim.arms.items()
        }  # fmt: skip

    def _tune(self, trials: dict[str, ClaimRun]) -> dict[str, Plan]:
        """Choose the learning rate of each arm by its error on a held-out fifth of the training images."""
        candidates = {arm: tuning_trials(trial) for arm, trial in trials.items() if _tunes(self.claim.arms[arm])}
        results = self._results([trial for group in candidates.values() for trial in group])
        plans = {}
        shape = load_images(self.data).shape
        shape = shape._replace(side=2 * shape.side) if self.claim.canvas else shape
        for arm, trial in trials.items():
            tuned = _mean_errors({t: results[t] for t in candidates.get(arm, [])})
            rate = min(tuned, key=lambda r: tuned[r], default=trial.learning_rate)
            cost = cost_of_words(trial.words, shape)
            plans[arm] = Plan(trial.words, cost, rate, {str(key): error for key, error in tuned.items()})
        return plans

    def _results(self, trials: list[ClaimRun]) -> dict[ClaimRun, Measured]:
        """Return the result of each trial, from the cache or by running it; every result is cached at once."""
        known: dict[ClaimRun, Measured] = {}
        for trial in trials:
            try:
                result = self.cache.get(trial)
            except DamagedRun as error:
                self.note(f"{error} is damaged: it is run again.")
                result = None
            if result is not None:
                known[trial] = result
                self.advance()
        missing = [trial for trial in dict.fromkeys(trials) if trial not in known]
        for trial, result in run_trials(missing, self.file.path, self.pool):
            self.cache.put(trial, result)
            known[trial] = result
            for _ in range(trials.count(trial)):
                self.advance()
        self.cpu_seconds += sum(known[trial].cpu_seconds for trial in set(trials))
        return known

    def _write(self, plans: dict[str, Plan], runs: dict[str, list[Measured]]) -> None:
        arms: dict[str, Any] = {}
        for name, plan in plans.items():
            values: dict[str, list[float]] = defaultdict(list)
            for run in runs[name]:
                for metric, value in run.values.items():
                    values[metric].append(round(value, 6))
            arms[name] = {
                "words": plan.words, **plan.cost, "learning_rate": plan.learning_rate, "tuning": plan.tuning,
                "values": dict(values),
            }  # fmt: skip
        result = result_header(self.file) | {
            "data": self.data,
            "budget": BUDGET[self.data].describe,
            "seeds": self.settings.seeds,
            "arms": arms,
            "cpu_seconds": round(self.cpu_seconds, 1),
        }
        path = result_path(self.settings.out, self.data, self.claim.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = load_images(self.data).test_labels.numpy().astype(np.uint8)
        stacked = {name: np.stack([run.predictions for run in group]) for name, group in runs.items()}
        write_atomic(path.with_suffix(".npz"), _packed(stacked, labels))
        write_atomic(path, json_bytes(result))


def _mean_errors(results: dict[ClaimRun, Measured]) -> dict[float, float]:
    """Return the mean error over the tuning seeds for each learning rate."""
    errors: dict[float, list[float]] = defaultdict(list)
    for trial, result in results.items():
        errors[trial.learning_rate].append(result.values["error"])
    return {rate: round(sum(values) / len(values), 6) for rate, values in errors.items()}


def _final_words(claim: Claim, arm: Arm, shape: Shape) -> str:
    """Return the words of an arm with its widths scaled to the cost of the arm that it matches."""
    if arm.match is None:
        return arm.words
    target = cost_of_words(claim.arms[arm.match].words, shape)[arm.by]
    return scale_words(arm.words, shape, target, arm.by)


def _packed(predictions: dict[str, np.ndarray], labels: np.ndarray) -> bytes:
    """Return a compressed .npz: labels (N,), arm names, and the predicted classes (arms, seeds, N)."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, labels=labels, arms=np.array(list(predictions)), predictions=np.stack(list(predictions.values()))
    )
    return buffer.getvalue()
