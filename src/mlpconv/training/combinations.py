"""Settings of a recipe that are valid alone and exclude one another."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mlpconv.errors import UsageError
from mlpconv.text import option

if TYPE_CHECKING:
    from mlpconv.training.recipe import Recipe

__all__ = ["SCRATCH", "TIMM", "check_combination"]

SCRATCH = "scratch"
"""The source of a network with random weights."""
OF_THE_SOURCE = (
    "model", "width", "activation", "norm", "pool_first", "pool2", "dropout", "last_relu", "head", "init", "whiten",
    "preprocessing",
)  # fmt: skip
"""Settings that describe a new network: with pretrained weights, the source decides them."""
TIMM = "timm:"
MAX_PATH, MAX_SHOWN = 4096, 80


def check_combination(recipe: Recipe) -> None:
    """Raise UsageError for settings that are valid alone and exclude one another."""
    if recipe.lr == 0:
        raise UsageError("lr=0 trains nothing: give a learning rate above 0.")
    if recipe.schedule == "steps" and not recipe.milestones:
        raise UsageError(
            "schedule=steps needs milestones, the epochs after which the learning rate drops, like milestones=200,230."
        )
    if recipe.milestones and recipe.schedule != "steps":
        raise UsageError(f"milestones are for schedule=steps, not for schedule={recipe.schedule}: drop one of the two.")
    if any(epoch < 1 for epoch in recipe.milestones):
        raise UsageError(f"milestones={_short(recipe.milestones)} is not accepted: milestones are epochs, 1 or more.")
    if any(not 1 <= side <= 4096 for side in recipe.sizes):
        raise UsageError(f"sizes={_short(recipe.sizes)} is not accepted: sizes are image sides in pixels, 1 to 4096.")
    ascending = list(recipe.freeze) == sorted(recipe.freeze)
    if len(recipe.freeze) > 2 or not ascending or any(not 0 <= fraction <= 1 for fraction in recipe.freeze):
        raise UsageError(
            f"freeze={_short(recipe.freeze)} is not accepted: give one or two fractions of the run, from 0 to 1 and "
            "ascending, like freeze=0.3,0.75."
        )
    if recipe.sizes and "zca" in recipe.preprocessing:
        raise UsageError(
            "sizes and zca exclude one another: ZCA whitening is fitted to one image size. Drop one of the two."
        )
    if recipe.balance and recipe.shuffle_window:
        raise UsageError(
            f"{option('balance', True)} draws from all images and {option('shuffle_window', recipe.shuffle_window)} "
            "from neighbouring ones: drop one of the two."
        )
    if recipe.calibrate and recipe.add_classes:
        raise UsageError(
            f"{option('calibrate', True)} would change the logits of the known classes, which "
            f"{option('add_classes', True)} keeps: drop one of the two."
        )
    check_source(recipe)
    check_teacher(recipe)


def check_source(recipe: Recipe) -> None:
    """Raise UsageError for settings that the initial weights exclude."""
    if not recipe.source or len(recipe.source) > MAX_PATH:
        raise UsageError(f"source={_short(recipe.source)} is not accepted: give the name of a network or a model file.")
    if recipe.source == SCRATCH:
        for name in ("weights", "tune", "add_classes"):
            value = getattr(recipe, name)
            if value != _default(recipe, name):
                network = "timm:NAME" if name == "weights" else "NETWORK"
                raise UsageError(
                    f"{option(name, value)} needs pretrained weights: name them, {option('source', network)}."
                )
        return
    if recipe.weights is not None and not recipe.source.startswith(TIMM):
        raise UsageError(
            f"{option('weights', recipe.weights)} is for a network of timm, as {option('source', 'timm:resnet18')}; "
            f"{option('source', recipe.source)} has its own weights: drop one of the two."
        )
    for name in OF_THE_SOURCE:
        if getattr(recipe, name) != _default(recipe, name):
            raise UsageError(
                f"{option(name, getattr(recipe, name))} has no effect with {option('source', recipe.source)}, which "
                "decides the network and its preprocessing: drop one of the two."
            )
    if recipe.add_classes and recipe.tune != "head":
        raise UsageError(
            f"{option('add_classes', True)} is for a classifier that is fitted alone, {option('tune', 'head')}, and "
            f"not for {option('tune', recipe.tune)}: drop one of the two."
        )


def check_teacher(recipe: Recipe) -> None:
    """Raise UsageError for settings that exclude learning from a teacher, or need one."""
    name = recipe.teacher
    if name is None:
        for key in ("teacher_weight", "teacher_temperature"):
            if getattr(recipe, key) != _default(recipe, key):
                raise UsageError(
                    f"{option(key, getattr(recipe, key))} needs a teacher: name one, {option('teacher', 'MODEL')}."
                )
        return
    if not name or len(name) > MAX_PATH:
        raise UsageError(f"teacher={_short(name)} is not accepted: give a model file, run folder or shipped network.")
    if name.startswith(TIMM):
        raise UsageError(
            f"{option('teacher', name)} does not know the classes of the data: first train it on them, with "
            f"{option('source', name)}, and give that run folder as the teacher."
        )
    if recipe.tune == "head":
        raise UsageError(
            f"{option('teacher', name)} teaches in training steps, and {option('tune', 'head')} fits a classifier "
            f"without any: pass {option('tune', 'all')}, or {option('source', SCRATCH)} for a new network."
        )


def _default(recipe: Recipe, name: str) -> Any:
    return next(item.default for item in dataclasses.fields(recipe) if item.name == name)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
