"""Accuracy on held-out images and its seconds: CIFAR-10 from the carried parts, else the digits of the package."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_data
import torch

import mlpconv

__all__ = ["run"]

LONGER = {"epochs": 10, "crop": 4, "ema": 0.97, "batch_size": 360, "lr": 0.04}
RECIPES: tuple[tuple[str, int, int, dict[str, Any]], ...] = (
    ("fast, 10 epochs of batches of 360", 10, 10, {"recipe": "fast"} | LONGER),
    ("best", 1, 48, {"recipe": "best"}),
    ("fast", 3, 7, {"recipe": "fast"}),
    ("paper", 3, 300, {"recipe": "paper"}),
    ("paper, fully connected head", 3, 300, {"recipe": "paper", "head": "fc"}),
    ("paper, fully connected head with dropout", 3, 300, {"recipe": "paper", "head": "fc+dropout"}),
    ("paper without dropout", 3, 300, {"recipe": "paper", "dropout": 0.0}),
    ("paper with crops and flips", 3, 300, {"recipe": "paper", "crop": 4, "crop_mode": "zero", "flip": "random"}),
)
"""Name, seeds, seconds of a run as first expected, and what `fit` is given; most important first."""
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
    data = None if small else gpu_data.load()
    recipes = (("fast", 1, 10, {"recipe": "fast", "epochs": 1}),) if small or data is None else RECIPES
    kept = earlier.get("recipes", {}) if earlier.get("data") == (data and data.name) else {}
    result: dict[str, Any] = {"data": "digits" if data is None else data.name, "recipes": dict(kept)}
    for name, seeds, expected, settings in recipes:
        runs = list(kept.get(name, {}).get("runs", []))
        for seed in sorted(set(range(seeds)) - {row["seed"] for row in runs}):
            took = max((row["all_seconds"] for row in runs), default=expected)
            if time.perf_counter() > deadline - took:
                result.setdefault("left_out", []).append(f"{name}, from seed {seed}")
                break
            runs.append(one(data if data is not None else "digits", device, seed, settings) | {"sources": sources})
            result["recipes"][name] = summary(runs)
            say(result)
    return result


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
