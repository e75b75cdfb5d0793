"""The reduced setting for longer runs keeps the proportions of the full recipe, and its table has a row per plan."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from common import spread
from longer import COUNT, PLANS, SIDE, SMALL
from tables import longer_table

from mlpconv import create_model
from mlpconv.training import find_recipe


def test_the_images_per_parameter_are_those_of_the_full_recipe() -> None:
    small, full = (
        sum(weight.numel() for weight in create_model("nin_cifar10", width=width).parameters())
        for width in (SMALL["width"], 1.0)
    )
    assert small / COUNT == pytest.approx(full / 40_000, rel=0.1)


def test_the_crop_is_the_same_fraction_of_the_side() -> None:
    crop = find_recipe("best", "cifar10").crop
    assert abs(Fraction(crop * SIDE, 32) - SMALL["crop"]) <= Fraction(1, 2)


@pytest.mark.parametrize("name", PLANS)
def test_the_settings_of_a_plan_match_its_name(name: str) -> None:
    recipe = find_recipe("best", "cifar10").with_settings(**(SMALL | PLANS[name]))
    assert name.startswith(f"{recipe.epochs} epochs, cutout {recipe.cutout}")
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
