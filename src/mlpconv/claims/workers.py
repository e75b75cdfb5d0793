"""Run trials in several processes, one thread each; the number of processes changes no result."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path

from mlpconv.claims.claim_files import read_claim
from mlpconv.claims.trial import ClaimRun, Measured, run_trial

__all__ = ["end_pool", "run_trials", "start_pool"]


class _TrialProcess(SpawnProcess):
    """A process of a pool, to tell it from other children of this process."""


class _TrialContext(SpawnContext):
    """Starts fresh processes of that class."""

    Process = _TrialProcess


def run_trials(
    trials: Sequence[ClaimRun], claim_file: Path, pool: ProcessPoolExecutor | None
) -> Iterator[tuple[ClaimRun, Measured]]:
    """Yield trials with their results as they finish: in the processes of a pool, or in this one without."""
    if pool is None:
        for trial in trials:
            yield trial, _run(trial, claim_file)
        return
    futures = {pool.submit(_run, trial, claim_file): trial for trial in trials}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for future in futures:
            future.cancel()


def start_pool(workers: int) -> ProcessPoolExecutor | None:
    """Return a pool of fresh processes that leave Ctrl-C to this one; None for a single worker."""
    if workers == 1:
        return None
    return ProcessPoolExecutor(workers, _TrialContext(), initializer=_ignore_interrupts)


def end_pool(pool: ProcessPoolExecutor | None, *, now: bool = False) -> None:
    """Wait for the processes of a pool; `now` ends them without waiting for their trials."""
    if pool is None:
        return
    if now:
        for process in multiprocessing.active_children():
            if isinstance(process, _TrialProcess):
                process.terminate()
    pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(trial: ClaimRun, claim_file: Path) -> Measured:
    measure = read_claim(claim_file).claim.measure if trial.measure else None
    return run_trial(trial, measure)
