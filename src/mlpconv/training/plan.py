"""Resolve a recipe for a data set: number of epochs and steps, and notes for the user."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlpconv.data.sampler import Sampler
from mlpconv.errors import RunFolderError, UsageError
from mlpconv.text import counted, option
from mlpconv.training.process_group import current
from mlpconv.training.recipe import MAX_EPOCHS, Recipe
from mlpconv.training.sharded_step import check_shards, resolve_shards

__all__ = ["apply_settings", "check_unchanged", "plan_notes", "resolve_plan"]

# A resumed run may change these: they do not affect the result. The effect of min_steps is in the number of epochs.
CHANGEABLE_ON_RESUME = ("workers", "checkpoint_minutes", "min_steps")
NOTE_FACTOR = 10  # note if min_steps raises the epochs by more than this factor


def apply_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe with the user's settings; `epochs` without `min_steps` overrides the recipe's min_steps.

    Raises UsageError for an unknown key or an invalid value.
    """
    if "epochs" in settings and "min_steps" not in settings:
        settings = {**settings, "min_steps": 0}
    return recipe.with_settings(**settings)


def resolve_plan(recipe: Recipe, images: int, channels: int) -> Recipe:
    """Return the recipe with its automatic settings resolved: epochs by min_steps, flip by the number of channels.

    Raises UsageError if min_steps needs more epochs than a run may have.
    """
    per_epoch = Sampler(images, recipe.batch_size, recipe.seed).steps_per_epoch
    flip = recipe.flip
    if flip == "auto":
        flip = "random" if channels == 3 else "none"  # grey images are often signs, digits and letters
    epochs = max(recipe.epochs, -(-recipe.min_steps // per_epoch))
    if epochs > MAX_EPOCHS:
        raise UsageError(
            f"min_steps={recipe.min_steps} needs {epochs:,} epochs of these {images:,} images; at most {MAX_EPOCHS:,} "
            f"are accepted: lower it to {MAX_EPOCHS * per_epoch:,} or less, or reduce batch_size."
        )
    group = current()
    shards = resolve_shards(recipe, group)
    check_shards(shards, images // per_epoch, group)
    return dataclasses.replace(recipe, epochs=epochs, flip=flip, virtual_shards=shards)


def plan_notes(recipe: Recipe, plan: Recipe, images: int, min_steps: int = 0) -> Iterator[str]:
    """Yield notes on what a user may not expect in a resolved recipe.

    `min_steps` is the recipe's own value, which the user's `epochs` may have replaced.
    """
    per_epoch = Sampler(images, plan.batch_size, plan.seed).steps_per_epoch
    steps = plan.epochs * per_epoch
    if plan.epochs > NOTE_FACTOR * recipe.epochs:
        yield (
            f"The {images:,} training images are {counted(per_epoch, 'step')} per epoch, so "
            f"min_steps={recipe.min_steps} raises {counted(recipe.epochs, 'epoch')} to {plan.epochs:,}: pass "
            f"{option('min_steps', 0)} to keep {recipe.epochs:,}."
        )
    if steps < min_steps:
        be = "is" if plan.epochs == 1 else "are"
        yield (
            f"{counted(plan.epochs, 'epoch')} of the {images:,} training images {be} only {counted(steps, 'step')}; "
            f"the recipe's default is at least {min_steps:,}, as small data sets need more epochs."
        )
    if plan.ema and plan.ema_every > steps:
        yield (
            f"ema_every={plan.ema_every} is more than the {steps:,} steps of this run, so the EMA is never updated and "
            f"the last weights are evaluated: set ema_every to {max(1, steps // 10):,} or less, or ema=0."
        )


def check_unchanged(folder: Path, stored: Recipe, requested: Recipe) -> None:
    """Raise RunFolderError if a setting that affects the result of a run differs from the stored one."""
    values = requested.to_dict()
    for key, value in stored.to_dict().items():
        if values[key] != value and key not in CHANGEABLE_ON_RESUME:
            raise RunFolderError(
                f"{folder} was started with {key}={value}, got {key}={values[key]}: a resumed run keeps its recipe. "
                "Resume it without recipe and settings, or start a new run."
            )
