"""benchmarks/fields.py verifies receptive fields, and docs/profile.md shows its results."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.zoo import GRAPHS, Oracle, resnet
from torch import nn

from mlpconv.analysis import Profile, profile

TOP = Path(__file__).resolve().parents[2]
RESULT = json.loads((TOP / "benchmarks" / "results" / "fields.json").read_text("utf-8"))["result"]


@pytest.fixture(scope="module")
def benchmark_of_fields() -> ModuleType:
    sys.path.insert(0, str(TOP / "benchmarks"))
    import fields

    return fields


@pytest.mark.parametrize("name", ["residual", "ceil pooling", "asymmetric", "shuffled channels", "adaptive"])
def test_both_gradient_methods_agree(benchmark_of_fields: ModuleType, name: str) -> None:
    """The benchmark patches functions during the pass, the tests replace modules; the gradients agree."""
    shape, cells = (3, 24, 18), [(0, 0), (1, 2), (-1, -1)]
    size, seen = benchmark_of_fields.seen_by(GRAPHS[name], shape, cells)
    oracle = Oracle(GRAPHS[name], shape)
    assert size == tuple(oracle.output.shape[2:])
    assert seen == [oracle.spans(row % size[0], column % size[1]) for row, column in cells]


def test_max_pools_and_relus_are_linearised_as_modules_and_functions(benchmark_of_fields: ModuleType) -> None:
    class Functions(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu_(torch.max_pool2d(-nn.functional.relu(x), 3, 2, ceil_mode=True)) * x.mean().relu()

    _, [(rows, columns)] = benchmark_of_fields.seen_by(Functions(), (1, 8, 8), [(1, 1)])
    assert (rows, columns) == ((0, 7), (0, 7))  # the mean sees the whole image
    _, [(rows, columns)] = benchmark_of_fields.seen_by(nn.MaxPool2d(3, 2, 1), (1, 9, 9), [(1, 2)])
    assert (rows, columns) == ((1, 3), (3, 5))


def test_a_wrong_profile_is_not_verified(benchmark_of_fields: ModuleType) -> None:
    model, shape = nn.Sequential(*list(resnet((1, 1), 4).children())[:-3]), (3, 61, 47)
    right = profile(model, shape)
    assert benchmark_of_fields.same_cells(model, shape, right, 1.0)
    rows, columns = right.field or ()
    for wrong in (
        replace(rows, spans=((0, 0), *rows.spans[1:])),
        replace(rows, spans=rows.spans[:-1]),
        replace(rows, spans=(*rows.spans[:-1], (rows.spans[-1][0], rows.spans[-1][1] - 1))),
    ):
        assert not benchmark_of_fields.same_cells(model, shape, with_field(right, (wrong, columns)), 1.0)
    strip = (3, rows.size + 3 * int(rows.jump), 24)
    assert benchmark_of_fields.same_length(model, strip, rows.size, 1.0)
    assert not benchmark_of_fields.same_length(model, strip, rows.size + 1, 1.0)


def with_field(result: Profile, field: Any) -> Profile:
    return replace(result, field=field)


def test_all_results_are_verified_and_shown_in_the_docs(benchmark_of_fields: ModuleType) -> None:
    assert len(RESULT["networks"]) == len(benchmark_of_fields.NETWORKS) >= 12
    assert all(row["verified"] for row in RESULT["networks"])
    page = (TOP / "docs" / "profile.md").read_text("utf-8")
    assert benchmark_of_fields.table(RESULT) in page


def test_correct_results_are_bold(benchmark_of_fields: ModuleType) -> None:
    row = {"network": "net", "kind": "a chain", "field": [27, 27], "verified": True}
    others = {"a": {"field": 27}, "b": {"field": 35}, "c": {"failed": "IndexError"}, "d": {}}
    text = benchmark_of_fields.table({"versions": dict.fromkeys(others, "1.0"), "networks": [row | {"others": others}]})
    assert text.splitlines()[-1] == "| net | a chain | **27** | **27** | 35 | IndexError | - |"
    row["verified"] = False
    text = benchmark_of_fields.table({"versions": {}, "networks": [row | {"others": {}}]})
    assert "27 (not verified)" in text
