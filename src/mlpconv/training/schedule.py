"""Learning-rate schedules, as a pure function of the step."""

from __future__ import annotations

import math

from mlpconv.training.recipe import Recipe

__all__ = ["lr_factor"]

ONECYCLE_WARMUP = 0.25


def lr_factor(recipe: Recipe, step: int, steps: int, steps_per_epoch: int) -> float:
    """Return the factor on the peak learning rate at a step (0-based) of `steps`, in 0..1."""
    warmup = max(recipe.warmup, ONECYCLE_WARMUP) if recipe.schedule == "onecycle" else recipe.warmup
    warmup_steps = warmup * steps
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step + 0.5 - warmup_steps) / max(steps - warmup_steps, 1)  # 0..1, from the peak to the end
    match recipe.schedule:
        case "linear":
            return 1 - progress
        case "cosine" | "onecycle":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "steps":
            return 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in recipe.milestones)
    return 1.0
