"""The course of the learning rate, as a pure function of the step."""

from __future__ import annotations

import math

from mlpconv.training.recipe import Recipe

__all__ = ["lr_factor"]

ONECYCLE_RISE = 0.25


def lr_factor(recipe: Recipe, step: int, steps: int, steps_per_epoch: int) -> float:
    """What the peak rate is multiplied by at a step (0-based) of `steps` in all; in 0..1."""
    warmup = max(recipe.warmup, ONECYCLE_RISE) if recipe.schedule == "onecycle" else recipe.warmup
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    left = (step + 0.5 - rise) / max(steps - rise, 1)  # 0..1, from the peak to the end
    match recipe.schedule:
        case "linear":
            return 1 - left
        case "cosine" | "onecycle":
            return 0.5 * (1 + math.cos(math.pi * left))
        case "steps":
            return 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in recipe.milestones)
    return 1.0
