"""The ladder's plans differ by one lever each, and its table gives paired differences with a pooled deviation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from common import spread
from ladder import CHOICES, FLOOR, RESET, RUNGS, plans
from rungs import changes, ladder_table, pooled_deviation

from mlpconv.training.recipe import Recipe, find_recipe


def test_each_rung_adds_its_lever_and_each_removal_takes_one_away() -> None:
    found = plans()
    names = list(RUNGS)
    assert found["floor"] == {}
    everything = found[f"with {names[-1]}"]
    assert everything == {key: value for rung in RUNGS.values() for key, value in rung.items()}
    for before, name in zip(["floor", *(f"with {name}" for name in names)], names, strict=False):
        assert found[f"with {name}"] == found[before] | RUNGS[name]
        assert found[f"with {name}"] != found[before]
    for name in names[:-1]:
        missing = set(everything) - set(found[f"without {name}"])
        assert missing == set(RUNGS[name])
    for name, other in CHOICES.items():
        assert found[f"but {name}"] == everything | other != everything
    assert len(found) == 2 * len(names) + len(CHOICES)


def test_no_two_levers_touch_the_same_setting() -> None:
    assert sum(len(rung) for rung in RUNGS.values()) == len(plans()["with " + list(RUNGS)[-1]])


def test_every_setting_is_one_of_a_recipe_and_without_levers_none_is_left_of_the_fast_one() -> None:
    fast = find_recipe("fast", "cifar10").to_dict()
    plain = Recipe().to_dict()
    for rung in RUNGS.values():
        assert set(rung) <= set(plain)
    floor = fast | RESET | FLOOR
    for key in {key for rung in RUNGS.values() for key in rung} - set(FLOOR):
        assert floor[key] == plain[key] or not floor[key]


def plan(*errors: float) -> dict[str, Any]:
    rows = [{"seed": seed, "error": error, "cpu_seconds": 61.0} for seed, error in enumerate(errors)]
    return {"error": spread(list(errors)), "cpu_seconds": spread([61.0] * len(errors)), "runs": rows}


def test_differences_pair_the_seeds() -> None:
    assert changes(plan(0.2, 0.3), plan(0.19, 0.27, 0.5)) == pytest.approx([-1, -3])


def test_the_pooled_deviation_is_that_within_groups() -> None:
    groups = [[1.0, 3.0, 5.0], [10.0, 11.0], [7.0]]
    within = np.concatenate([np.array(group) - np.mean(group) for group in groups])
    assert pooled_deviation(groups) == pytest.approx(np.sqrt((within**2).sum() / 3))
    assert np.isnan(pooled_deviation([[1.0], [2.0]]))


def test_the_table_has_both_ways_of_each_lever() -> None:
    found = {"floor": plan(0.4, 0.42), "with A": plan(0.3, 0.31), "with B": plan(0.25, 0.25)}
    found["without A"] = plan(0.33, 0.34)
    found["but slower"] = plan(0.26, 0.27)
    for row, mirrored in zip(found["with B"]["runs"], (0.23, 0.24), strict=True):
        row["error_with_tta_flip"] = mirrored
    found["with B"]["error_with_tta_flip"] = spread([0.23, 0.24])
    protocol = {"size": 20, "epochs": 3, "images": 20_000, "judged": 10_000}
    table = ladder_table({"command": "c", "date": "d", "result": {"protocol": protocol, "plans": found}})
    sd = pooled_deviation([[-5, -6], [-5, -6], [-8, -9], [1, 2]])
    assert f"| A | 30.50% (2) | -10.50 | 33.50% (2) | -8.50 ± {1.96 * sd / 2**0.5:.2f} |" in table
    assert "| B | 25.00% (2) | -5.50 ±" in table and "| 30.50% (2) | -5.50 ±" in table
    assert "| none | 41.00% (2) | | | | 61 |" in table
    assert f"| all, but slower | 26.50% (2) | +1.50 ± {1.96 * sd / 2**0.5:.2f} |" in table
    assert "20,000" in table and "20 pixels" in table
    assert f"| mirror image at the end | 23.50% (2) | -1.50 ± {1.96 * sd / 2**0.5:.2f} |" in table
