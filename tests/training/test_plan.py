"""Resolving a recipe for a data set, and notes for the user."""

from __future__ import annotations

import pytest

from mlpconv.errors import UsageError
from mlpconv.training import Recipe
from mlpconv.training.plan import plan_notes, resolve_plan

RECIPE = Recipe(epochs=3, batch_size=8)


def notes(recipe: Recipe, images: int) -> list[str]:
    return list(plan_notes(recipe, resolve_plan(recipe, images, 3), images))


@pytest.mark.parametrize(("min_steps", "epochs"), [(0, 3), (15, 3), (16, 4), (20, 4), (21, 5)])
def test_min_steps_raise_the_epochs(min_steps: int, epochs: int) -> None:
    assert resolve_plan(RECIPE.with_settings(min_steps=min_steps), 37, 3).epochs == epochs  # five steps each


def test_auto_flip_depends_on_the_channels() -> None:
    assert [resolve_plan(RECIPE.with_settings(flip="auto"), 37, channels).flip for channels in (1, 2, 3)] == [
        "none",
        "none",
        "random",
    ]
    assert resolve_plan(RECIPE.with_settings(flip="alternate"), 37, 1).flip == "alternate"


def test_min_steps_that_raise_the_epochs_tenfold_are_noted() -> None:
    assert notes(RECIPE.with_settings(min_steps=150), 37) == []  # 30 epochs, ten times as many
    (note,) = notes(RECIPE.with_settings(min_steps=151), 37)
    assert "37 training images are 5 steps per epoch" in note
    assert "min_steps=151 raises 3 epochs to 31" in note
    assert "min_steps=0" in note


def test_one_step_and_one_epoch_are_singular() -> None:
    (note,) = notes(RECIPE.with_settings(epochs=1, min_steps=151), 5)
    assert "5 training images are 1 step per epoch, so min_steps=151 raises 1 epoch to 151:" in note
    once = RECIPE.with_settings(epochs=1, min_steps=0)
    (note,) = plan_notes(once, resolve_plan(once, 5, 3), 5, 100)
    assert note.startswith("1 epoch of the 5 training images is only 1 step; the recipe's default is at least 100")


def test_min_steps_beyond_the_maximum_epochs_are_refused() -> None:
    assert resolve_plan(RECIPE.with_settings(min_steps=500_000), 37, 3).epochs == 100_000
    with pytest.raises(UsageError, match=r"min_steps=500001 needs 100,001 epochs .* 100,000 .* 500,000 or less"):
        resolve_plan(RECIPE.with_settings(min_steps=500_001), 37, 3)


def test_an_ema_that_is_never_updated_is_noted() -> None:
    with_ema = RECIPE.with_settings(ema=0.9)
    assert notes(with_ema.with_settings(ema_every=15), 37) == []
    (note,) = notes(with_ema.with_settings(ema_every=16), 37)
    assert "ema_every=16 is more than the 15 steps of this run" in note
    assert "ema_every to 1 or less, or ema=0" in note
    assert notes(RECIPE.with_settings(ema_every=16), 37) == []
