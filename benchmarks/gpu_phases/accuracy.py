"""Accuracy on held-out images and its seconds: the data sets whose parts were carried, else the package's digits."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gpu_data
import torch

import mlpconv

__all__ = ["Plan", "add_runs", "run"]


class Plan(NamedTuple):
    """What is trained: seeds, the seconds that a run is first expected to take, and what `fit` is given."""

    seeds: int
    seconds: float
    settings: dict[str, Any]
    data: str = "cifar10"


SWEEP = "the recipe of the sweep"
PAPER = {"recipe": "paper"}
PLANS: dict[str, Plan] = {
    SWEEP: Plan(10, 12, {"recipe": "fast"}),  # with what `swept` found
    "fast, 10 epochs of batches of 360": Plan(
        10, 12, {"recipe": "fast", "epochs": 10, "crop": 4, "ema": 0.97, "batch_size": 360, "lr": 0.04}
    ),
    "fast": Plan(3, 8, {"recipe": "fast"}),
    "best": Plan(10, 60, {"recipe": "best"}),
    "paper": Plan(3, 300, PAPER),
    "paper with crops and flips": Plan(3, 300, PAPER | {"crop": 4, "crop_mode": "zero", "flip": "random"}),
    "paper, fully connected head": Plan(3, 300, PAPER | {"head": "fc"}),
    "paper, fully connected head with dropout": Plan(3, 300, PAPER | {"head": "fc+dropout"}),
    "paper without dropout": Plan(3, 300, PAPER | {"dropout": 0.0}),
    "paper, MNIST": Plan(3, 150, PAPER, "mnist"),
    "paper, CIFAR-100": Plan(3, 300, PAPER, "cifar100"),
}
"""Most important first."""
CANDIDATES: tuple[dict[str, Any], ...] = tuple(
    {"epochs": epochs, "crop": 4, "ema": 0.97, "batch_size": batch, "lr": lr}
    for epochs, batch, lr in ((8, 360, 0.04), (8, 500, 0.05), (9, 750, 0.06), (10, 500, 0.04), (11, 750, 0.05))
)
"""What the sweep tries, one seed each."""
SWEEP_SEED = 1000
LEVELS = (0.912, 0.94)


def run(
    device: torch.device,
    *,
    small: bool,
    deadline: float,
    say: Callable[[dict[str, Any]], None],
    earlier: dict[str, Any],
    sources: str,
) -> dict[str, Any]:
    """Return for each recipe the validation accuracy of each seed, its seconds, and the seconds to each level.

    The runs of an `earlier` result are kept, and only the seeds that are missing are trained.
    """
    sets = {} if small else {name: gpu_data.load(name) for name in sorted({plan.data for plan in PLANS.values()})}
    found = {name: data for name, data in sets.items() if data is not None}
    plans = PLANS if found else {"fast": Plan(1, 10, {"recipe": "fast", "epochs": 1}, "digits")}
    data: dict[str, Any] = found or {"digits": "digits"}
    title = "cifar10" if found else "digits"
    result = begun(earlier, title)
    for name, plan in plans.items():
        if plan.data not in data:
            result.setdefault("left_out", []).append(f"{name}: its images were not carried")
            continue
        settings = plan.settings
        if name == SWEEP:
            settings = settings | swept(data[plan.data], device, result, deadline, plan.seconds, say)
        add_runs(result, name, plan._replace(settings=settings), data[plan.data], device, deadline, say, sources)
    return result


def begun(earlier: dict[str, Any], data: str) -> dict[str, Any]:
    """Return the result of a phase as it stands: the runs of an earlier one on the same data, or none."""
    kept = earlier if earlier.get("data") == data else {}
    sweep = {"sweep": kept["sweep"]} if "sweep" in kept else {}
    return {"data": data, "recipes": dict(kept.get("recipes", {}))} | sweep


def add_runs(
    result: dict[str, Any],
    name: str,
    plan: Plan,
    data: Any,
    device: torch.device,
    deadline: float,
    say: Callable[[dict[str, Any]], None],
    sources: str,
) -> None:
    """Train the seeds of a plan that a result lacks, as long as there is time, and add them to it."""
    runs = list(result["recipes"].get(name, {}).get("runs", []))
    for seed in sorted(set(range(plan.seeds)) - {row["seed"] for row in runs}):
        took = max((row["all_seconds"] for row in runs), default=plan.seconds)
        if time.perf_counter() > deadline - took:
            result.setdefault("left_out", []).append(f"{name}, from seed {seed}")
            break
        runs.append(one(data, device, seed, plan.settings) | {"sources": sources})
        result["recipes"][name] = summary(runs)
        say(result)


def swept(
    data: Any,
    device: torch.device,
    result: dict[str, Any],
    deadline: float,
    expected: float,
    say: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Return the candidate that reaches the first level soonest, else the most accurate; train those not yet tried."""
    rows = result.setdefault("sweep", [])
    for settings in CANDIDATES[len(rows) :]:
        if time.perf_counter() > deadline - expected:
            break
        rows.append({"settings": settings} | one(data, device, SWEEP_SEED, {"recipe": "fast"} | settings))
        say(result)
    if not rows:
        return {}
    level = f"seconds_to_{LEVELS[0]:.1%}"
    best = min(rows, key=lambda row: (row[level] is None, row[level] or 0.0, -row["accuracy"]))
    chosen: dict[str, Any] = best["settings"]
    return chosen


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return runs with the mean and standard deviation of their accuracy."""
    accuracies = [row["accuracy"] for row in runs]
    sd = round(statistics.stdev(accuracies), 4) if len(accuracies) > 1 else None
    return {"runs": runs, "mean": round(statistics.fmean(accuracies), 4), "sd": sd}


def one(data: Any, device: torch.device, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train once and return the accuracy of the last epoch, its seconds, and when each level was reached."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = mlpconv.fit(
            data, out=Path(folder, "run"), seed=seed, device=device.type, progress=None, report=False, **settings
        )
    row: dict[str, Any] = {"seed": seed, "accuracy": run.history[-1]["val_accuracy"]}
    row |= {"training_seconds": run.history[-1]["seconds"], "all_seconds": round(time.perf_counter() - began, 1)}
    for level in LEVELS:
        reached = (epoch["seconds"] for epoch in run.history if (epoch["val_accuracy"] or 0) >= level)
        row[f"seconds_to_{level:.1%}"] = next(reached, None)
    return row
