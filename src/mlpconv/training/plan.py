"""What a recipe comes to for so many images: epochs, steps, and what the reader should know of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mlpconv.data.sampler import Sampler
from mlpconv.errors import UsageError
from mlpconv.text import option
from mlpconv.training.recipe import MAX_EPOCHS, Recipe

__all__ = ["plan_notes", "resolve_plan", "apply_settings"]

MANY = 10  # times the epochs of the recipe, from which a run is told that it has more


def apply_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe with the settings of a person; epochs without min_steps are that many.

    A recipe's min_steps was chosen for its own epochs. Raises UsageError for an unknown key or an impossible value.
    """
    if "epochs" in settings and "min_steps" not in settings:
        settings = {**settings, "min_steps": 0}
    return recipe.with_settings(**settings)


def resolve_plan(recipe: Recipe, images: int, channels: int) -> Recipe:
    """The recipe with what it leaves open decided: epochs by its least number of steps, flips by the images' colour.

    Raises UsageError where so few images would need more epochs than a run may have.
    """
    per_epoch = Sampler(images, recipe.batch_size, recipe.seed).steps_per_epoch
    flip = recipe.flip
    if flip == "auto":
        flip = "random" if channels == 3 else "none"  # grey images are as often signs, digits and letters
    epochs = max(recipe.epochs, -(-recipe.min_steps // per_epoch))
    if epochs > MAX_EPOCHS:
        raise UsageError(
            f"min_steps={recipe.min_steps} needs {epochs:,} epochs of these {images:,} images; at most {MAX_EPOCHS:,} "
            f"are accepted: lower it to {MAX_EPOCHS * per_epoch:,} or less, or make batch_size smaller."
        )
    return dataclasses.replace(recipe, epochs=epochs, flip=flip)


def plan_notes(asked: Recipe, plan: Recipe, images: int, least: int = 0) -> Iterator[str]:
    """What may surprise in the plan that a recipe came to; `least` is the min_steps that a person's epochs replaced."""
    per_epoch = Sampler(images, plan.batch_size, plan.seed).steps_per_epoch
    steps = plan.epochs * per_epoch
    if plan.epochs > MANY * asked.epochs:
        yield (
            f"The {images:,} training images make {per_epoch:,} steps an epoch, so min_steps={asked.min_steps} makes "
            f"{plan.epochs:,} epochs of the {asked.epochs:,} asked for: pass {option('min_steps', 0)} for those."
        )
    if steps < least:
        yield (
            f"{plan.epochs:,} epochs of the {images:,} training images are {steps:,} steps, as asked for; the recipe "
            f"by itself takes at least {least:,}, since small sets need more epochs."
        )
    if plan.ema and plan.ema_every > steps:
        yield (
            f"ema_every={plan.ema_every} is more than the {steps:,} steps of this run, so no average is ever made and "
            f"the last weights are judged: set ema_every to {max(1, steps // 10):,} or less, or ema=0."
        )
