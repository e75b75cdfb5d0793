"""The first-layer filters that are kept are those of the first run, and a figure shows them with their index."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpconv.claims import first_layer
from mlpconv.claims.claim_files import ClaimFile, find_claim
from mlpconv.claims.figures import figures_of, filter_panels
from mlpconv.claims.first_layer import filters_path, read_filters
from mlpconv.claims.measured.orientation_tuning import orientation_index
from mlpconv.claims.results import judge_all, result_path
from mlpconv.claims.runner import RunSettings, run_claims
from mlpconv.claims.trial import ClaimRun, trained_network
from mlpconv.errors import DataError, UsageError
from mlpconv.plots.orientation import orientation


def short_orientation() -> ClaimFile:
    """The claim about orientation with a fiftieth of the training."""
    file = find_claim("orientation")
    arms = {name: replace(arm, epochs=arm.epochs / 50) for name, arm in file.claim.arms.items()}
    return replace(file, claim=replace(file.claim, arms=arms))


def run(folder: Path) -> list[str]:
    notes: list[str] = []
    run_claims([short_orientation()], RunSettings(folder, ("digits",), seeds=3), lambda done: None, notes.append)
    return notes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    run(out)
    return out


def stored(folder: Path) -> dict[str, dict[str, object]]:
    result: dict[str, dict[str, object]] = json.loads(result_path(folder, "digits", "orientation").read_text())
    return result


def test_the_filters_are_those_of_the_first_run(folder: Path) -> None:
    result = stored(folder)
    weights = read_filters(short_orientation(), "digits", folder, result)
    assert {name: values.shape for name, values in weights.items()} == dict.fromkeys(
        ("trained", "random"), (16, 1, 5, 5)
    )
    for name, values in weights.items():
        measured = result["arms"][name]["values"]["orientation"][0]  # type: ignore[index]
        assert orientation_index(torch.from_numpy(values)) == pytest.approx(measured, abs=1e-5)
    assert abs(weights["trained"] - weights["random"]).max() > 0.01
    start = trained_network(ClaimRun("digits", "5x5:16 1x1:16 max 3x3:24 1x1:24 max 1x1:K gap", 1, 0.06, epochs=0))
    assert (weights["random"] == start[0].convs[0].weight.detach().numpy()).all()


def test_filters_of_another_result_are_not_shown_and_are_replaced(folder: Path) -> None:
    path = filters_path(folder, "digits", "orientation")
    content = path.read_bytes()
    with np.load(path) as arrays:
        np.savez_compressed(path, arms=arrays["arms"], weights=arrays["weights"][:, ::-1, :, ::-1] ** 2)
    (judged,) = judge_all([short_orientation()], folder)
    assert filter_panels(judged) == {}
    assert run(folder) == []
    assert path.read_bytes() == content


@pytest.mark.parametrize("damage", [lambda _: b"", lambda c: c[:-30], lambda _: b"PK"], ids=["empty", "cut", "no zip"])
def test_a_damaged_file_is_named_and_written_again(damage: Callable[[bytes], bytes], folder: Path) -> None:
    path = filters_path(folder, "digits", "orientation")
    content = path.read_bytes()
    path.write_bytes(damage(content))
    with pytest.raises(DataError, match="mlpconv claims run orientation"):
        read_filters(short_orientation(), "digits", folder, stored(folder))
    assert run(folder) == [f"{path} is damaged: it is written again."]
    assert path.read_bytes() == content


def test_a_result_with_filters_trains_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_layer, "trained_network", lambda trial: pytest.fail("trained again"))
    assert run(folder) == []


def test_the_figure_writes_the_index_under_each_filter(folder: Path, tmp_path: Path) -> None:
    (judged,) = judge_all([short_orientation()], folder)
    (rows,) = filter_panels(judged).values()
    assert [row["name"] for row in rows] == ["random", "trained"]
    texts = [text.get_text() for text in orientation({"digits": rows}).axes[0].texts]
    for row in rows:
        assert f"mean {np.mean(row['indices']):.2f}" in texts
        assert [f"{index:.2f}" for index in row["indices"][:8]] == [text for text in texts if text[0] == "0"][:8]
        texts = texts[texts.index(row["name"]) + 10 :]
    assert figures_of(judged, tmp_path)["filters"].stat().st_size > 5_000
    with pytest.raises(UsageError, match="no filters"):
        orientation({"digits": []})
