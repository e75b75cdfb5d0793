"""The runs of the ablation differ by one technique each; its table has paired changes with a pooled deviation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from common import spread
from ladder import CHOICES, FLOOR, RESET, RUNGS, plans
from rungs import changes, ladder_table, pooled_deviation

from mlpconv.training import Recipe, find_recipe


def test_each_run_adds_or_removes_one_technique() -> None:
    runs = plans()
    names = list(RUNGS)
    assert runs["floor"] == {}
    everything = runs[f"with {names[-1]}"]
    assert everything == {key: value for rung in RUNGS.values() for key, value in rung.items()}
    for below, name in zip(["floor", *(f"with {name}" for name in names)], names, strict=False):
        assert runs[f"with {name}"] == runs[below] | RUNGS[name]
        assert runs[f"with {name}"] != runs[below]
    for name in names[:-1]:
        missing = set(everything) - set(runs[f"without {name}"])
        assert missing == set(RUNGS[name])
    for name, change in CHOICES.items():
        assert runs[f"but {name}"] == everything | change != everything
    assert len(runs) == 2 * len(names) + len(CHOICES)


def test_no_two_techniques_share_a_setting() -> None:
    assert sum(len(rung) for rung in RUNGS.values()) == len(plans()["with " + list(RUNGS)[-1]])


def test_all_settings_belong_to_a_recipe_and_the_baseline_has_no_technique() -> None:
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


def test_changes_pair_the_seeds() -> None:
    assert changes(plan(0.2, 0.3), plan(0.19, 0.27, 0.5)) == pytest.approx([-1, -3])


def test_the_pooled_deviation_is_computed_within_groups() -> None:
    groups = [[1.0, 3.0, 5.0], [10.0, 11.0], [7.0]]
    within = np.concatenate([np.array(group) - np.mean(group) for group in groups])
    assert pooled_deviation(groups) == pytest.approx(np.sqrt((within**2).sum() / 3))
    assert np.isnan(pooled_deviation([[1.0], [2.0]]))


def test_the_table_has_additions_removals_and_variations() -> None:
    runs = {"floor": plan(0.4, 0.42), "with A": plan(0.3, 0.31), "with B": plan(0.25, 0.25)}
    runs["without A"] = plan(0.33, 0.34)
    runs["but slower"] = plan(0.26, 0.27)
    for row, error in zip(runs["with B"]["runs"], (0.23, 0.24), strict=True):
        row["error_with_tta_flip"] = error
    runs["with B"]["error_with_tta_flip"] = spread([0.23, 0.24])
    protocol = {"size": 20, "epochs": 3, "images": 20_000, "validation_images": 10_000}
    table = ladder_table({"command": "c", "date": "d", "result": {"protocol": protocol, "plans": runs}})
    sd = pooled_deviation([[-5, -6], [-5, -6], [-8, -9], [1, 2]])
    assert f"| A | 30.50% (2) | -10.50 | 33.50% (2) | -8.50 ± {1.96 * sd / 2**0.5:.2f} |" in table
    assert "| B | 25.00% (2) | -5.50 ±" in table and "| 30.50% (2) | -5.50 ±" in table
    assert "| none | 41.00% (2) | | | | 61 |" in table
    assert f"| full recipe, slower | 26.50% (2) | +1.50 ± {1.96 * sd / 2**0.5:.2f} |" in table
    assert "20,000" in table and "20 pixels" in table
    assert f"| test-time augmentation (flip) | 23.50% (2) | -1.50 ± {1.96 * sd / 2**0.5:.2f} |" in table
