"""Measure training steps on the CPU, compiled against eager, alternating: is `engine=compile` worth its start?

    python benchmarks/compiled.py

nin_cifar10 of the paper, and with batch norm, in batches of 128 random images in bf16. Writes results/compiled.json.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch
from common import spread, write_result

from mlpconv.data.sampler import Batch
from mlpconv.models import create_model
from mlpconv.training.memory import keep_freed_memory
from mlpconv.training.optim import make_optimizers
from mlpconv.training.recipe import Recipe
from mlpconv.training.step_engine import StepEngine

NETWORKS: dict[str, dict[str, Any]] = {
    "paper": {"init": "he"},
    "batch norm": {"init": "he", "norm": "batch", "dropout": 0.0, "last_relu": False},
}
ENGINES = ("eager", "compile")
BATCH, ROUNDS = 128, 9


def compare(options: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds of the first step and of each later one, by engine, and the ratios of the pairs."""
    images = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    batch = Batch(images, torch.randint(10, (BATCH,)))
    recipe = Recipe(lr=0.01)
    steps, first = {}, {}
    for name in ENGINES:
        torch.manual_seed(0)
        model = create_model("nin_cifar10", **options).train()
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizers = make_optimizers(model, recipe)
        optimizers.set_lr(recipe.lr)
        steps[name] = StepEngine(model, optimizers, recipe, "bf16", name)  # type: ignore[arg-type]
        first[name] = seconds(steps[name], batch, 0)
    times: dict[str, list[float]] = {name: [] for name in ENGINES}
    for number in range(1, ROUNDS + 1):
        for name, step in steps.items():
            times[name].append(seconds(step, batch, number))
    ratios = [eager / compiled for eager, compiled in zip(times["eager"], times["compile"], strict=True)]
    return {
        "first_step_seconds": first,
        "seconds": {name: spread(values) | {"median": median(values)} for name, values in times.items()},
        "times_as_fast": spread(ratios) | {"median": median(ratios)},
    }


def seconds(step: StepEngine, batch: Batch, number: int) -> float:
    """Return the seconds of one training step."""
    start = time.perf_counter()
    step(batch, number)
    return time.perf_counter() - start


def main() -> None:
    """Measure both networks."""
    keep_freed_memory()
    torch.set_flush_denormal(True)
    result = {name: compare(options) for name, options in NETWORKS.items()}
    for name, row in result.items():
        ratio, compiling = row["times_as_fast"], row["first_step_seconds"]["compile"]
        print(f"{name}: compiled {ratio['median']:.2f} times as fast, after {compiling:.0f} s of compiling")
    write_result("compiled", result)


if __name__ == "__main__":
    main()
