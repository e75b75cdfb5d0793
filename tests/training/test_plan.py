"""What a recipe comes to for the images at hand, and what is said where that may surprise."""

from __future__ import annotations

import pytest

from mlpconv.errors import UsageError
from mlpconv.training import Recipe
from mlpconv.training.plan import plan_notes, resolve_plan

ASKED = Recipe(epochs=3, batch_size=8)


def said(recipe: Recipe, images: int) -> list[str]:
    return list(plan_notes(recipe, resolve_plan(recipe, images, 3), images))


@pytest.mark.parametrize(("min_steps", "epochs"), [(0, 3), (15, 3), (16, 4), (20, 4), (21, 5)])
def test_epochs_are_at_least_those_of_the_least_steps(min_steps: int, epochs: int) -> None:
    assert resolve_plan(ASKED.with_settings(min_steps=min_steps), 37, 3).epochs == epochs  # five steps each


def test_flips_are_decided_by_the_colour_and_only_where_left_open() -> None:
    assert [resolve_plan(ASKED.with_settings(flip="auto"), 37, channels).flip for channels in (1, 2, 3)] == [
        "none",
        "none",
        "random",
    ]
    assert resolve_plan(ASKED.with_settings(flip="alternate"), 37, 1).flip == "alternate"


def test_many_more_epochs_than_asked_for_are_told() -> None:
    assert said(ASKED.with_settings(min_steps=150), 37) == []  # 30 epochs, ten times as many
    (sentence,) = said(ASKED.with_settings(min_steps=151), 37)
    assert "37 training images make 5 steps an epoch" in sentence
    assert "min_steps=151 makes 31 epochs of the 3 asked for" in sentence
    assert "min_steps=0" in sentence


def test_more_epochs_than_any_run_has_are_refused_by_the_setting_that_was_given() -> None:
    assert resolve_plan(ASKED.with_settings(min_steps=500_000), 37, 3).epochs == 100_000
    with pytest.raises(UsageError, match=r"min_steps=500001 needs 100,001 epochs .* 100,000 .* 500,000 or less"):
        resolve_plan(ASKED.with_settings(min_steps=500_001), 37, 3)


def test_an_average_that_will_never_be_made_is_told() -> None:
    averaged = ASKED.with_settings(ema=0.9)
    assert said(averaged.with_settings(ema_every=15), 37) == []
    (sentence,) = said(averaged.with_settings(ema_every=16), 37)
    assert "ema_every=16 is more than the 15 steps of this run" in sentence
    assert "ema_every to 1 or less, or ema=0" in sentence
    assert said(ASKED.with_settings(ema_every=16), 37) == []
