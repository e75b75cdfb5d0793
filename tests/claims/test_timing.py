"""The networks of a claim are timed in turn, the times are stored, and a figure shows error against cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.claim_results import write_result

from mlpconv.claims import timing
from mlpconv.claims.claim_files import find_claim
from mlpconv.claims.figures import cost_panels, figures_of
from mlpconv.claims.results import judge_all
from mlpconv.claims.timing import KINDS, QUARTILES, measure_times, read_times, times_path
from mlpconv.errors import DataError, UsageError
from mlpconv.plots.error_cost import error_cost

ARMS = ("average pooling", "fully connected", "dropout and fully connected")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    file = find_claim("average-pooling")
    write_result(out, file, "digits", -1.0)
    measure_times(file, "digits", out, 3, lambda done: None)
    return out


def test_every_arm_has_median_and_quartiles_of_both_kinds(folder: Path) -> None:
    stored = json.loads(times_path(folder, "digits", "average-pooling").read_text())
    assert set(stored["arms"]) == set(ARMS)
    for arm in stored["arms"].values():
        for kind in ("inference", "training step"):
            assert 0 < arm[kind]["low"] <= arm[kind]["median"] <= arm[kind]["high"]
        assert arm["training step"]["median"] > arm["inference"]["median"]
    assert (stored["rounds"], stored["batch"], stored["threads"]) == (3, 64, 1)
    assert set(stored["environment"]) == {"cpu", "torch", "numpy"}


def test_each_round_times_every_call_once_and_the_first_round_does_not_count() -> None:
    seen: list[str] = []
    calls = {(name, "inference"): (lambda name=name: seen.append(name)) for name in "abc"}
    progress: list[int] = []
    times = timing._in_turn(calls, 3, progress.append)
    assert "".join(seen) == "abcbcacababc"
    assert {len(values) for values in times.values()} == {3}
    assert progress == [1, 2, 3, 4]


def test_the_state_of_torch_does_not_change(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    measure_times(find_claim("average-pooling"), "digits", folder, 3, lambda done: None)
    assert torch.equal(torch.rand(2), expected)


def test_the_figure_has_a_panel_for_each_cost_and_a_point_for_each_network(folder: Path, tmp_path: Path) -> None:
    (judged,) = judge_all([find_claim("average-pooling")], folder)
    figure = error_cost(cost_panels(judged))
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels == ["multiply-adds, millions", "inference, µs per image", "training step, µs per image"]
    for axes in figure.axes:
        assert axes.get_legend_handles_labels()[1] == list(ARMS)
    point = next(line for line in figure.axes[1].lines if line.get_label() == "fully connected")
    stored = read_times(judged.file, "digits", folder)
    assert stored is not None
    assert point.get_xdata()[0] == pytest.approx(stored["arms"]["fully connected"]["inference"]["median"] * 1000 / 64)
    assert set(figures_of(judged, tmp_path)) == {"cost", "networks", "networks-gap", "paired"}


def test_a_claim_without_times_has_no_such_figure(tmp_path: Path) -> None:
    write_result(tmp_path, find_claim("mlpconv"), "digits", -1.0)
    (judged,) = judge_all([find_claim("mlpconv")], tmp_path)
    assert cost_panels(judged) == {}
    with pytest.raises(UsageError, match="no networks to plot"):
        error_cost({})


MEDIANS = {name: {kind: {"median": 1.0} for kind in KINDS} for name in ARMS}
STRINGS = {name: {kind: dict.fromkeys(QUARTILES, "1") for kind in KINDS} for name in ARMS}


@pytest.mark.parametrize(
    "content",
    ["{", '{"arms": {}}', '{"arms": {"average pooling": {"inference": 3}}}']
    + [json.dumps({"arms": arms}) for arms in (MEDIANS, STRINGS)],
)
def test_damaged_times_are_named(content: str, tmp_path: Path) -> None:
    file = find_claim("average-pooling")
    path = times_path(tmp_path, "digits", "average-pooling")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(DataError, match=f"mlpconv claims time average-pooling --data digits --out {tmp_path}`"):
        read_times(file, "digits", tmp_path)


def test_a_folder_that_cannot_be_written_is_known_before_the_timing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = find_claim("average-pooling")
    write_result(tmp_path, file, "digits", -1.0)
    (tmp_path / "times").write_text("a file")
    monkeypatch.setattr(timing, "_in_turn", lambda *_: pytest.fail("timed in vain"))
    with pytest.raises(OSError, match="times"):
        measure_times(file, "digits", tmp_path, 3, lambda done: None)
