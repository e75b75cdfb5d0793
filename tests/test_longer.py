"""The small setting for longer runs keeps the proportions of the whole recipe, and its table has a row a plan."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from common import spread
from longer import COUNT, PLANS, SIDE, SMALL
from tables import longer_table

from mlpconv import create_model
from mlpconv.training.recipe import find_recipe


def test_there_are_as_many_images_for_each_parameter_as_in_the_whole_recipe() -> None:
    small, whole = (
        sum(weight.numel() for weight in create_model("nin_cifar10", width=width).parameters())
        for width in (SMALL["width"], 1.0)
    )
    assert small / COUNT == pytest.approx(whole / 40_000, rel=0.1)


def test_the_crop_is_the_same_share_of_the_side() -> None:
    whole = find_recipe("best", "cifar10").crop
    assert abs(Fraction(whole * SIDE, 32) - SMALL["crop"]) <= Fraction(1, 2)


@pytest.mark.parametrize("name", PLANS)
def test_each_plan_is_what_its_name_says(name: str) -> None:
    recipe = find_recipe("best", "cifar10").with_settings(**(SMALL | PLANS[name]))
    said = f"{recipe.epochs} epochs, squares of {recipe.cutout}"
    assert name.startswith(said)
    assert name.endswith(f", dropout {recipe.dropout}") == bool(recipe.dropout)


def test_the_table_has_a_row_for_each_plan() -> None:
    def plan(error: float, count: int) -> dict[str, Any]:
        values = {"error": error, "error_with_tta_flip": error - 0.02, "train_accuracy": 0.9}
        return {key: spread([value] * count) for key, value in values.items()} | {"runs": []}

    plans = {"7 epochs": plan(0.25, 1), "11 epochs": plan(0.23, 3)}
    text = longer_table({"command": "c", "date": "d", "result": {"plans": plans}})
    assert "`c`, d" in text
    assert "| 7 epochs | 25.0% | 23.0% | 90.0% | 1 |" in text
    assert "| 11 epochs | 23.0% | 21.0% | 90.0% | 3 |" in text
