"""A search: trials, limits, pruning, its files, and what it refuses."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlpconv
from mlpconv.cli import main
from mlpconv.data import Dataset, Split
from mlpconv.errors import MissingSplit, RunFolderError, TrainingError, UsageError
from mlpconv.search import CostLimits, run_search, searching
from mlpconv.search import trials as search_trials
from mlpconv.search.trials import NetworkCost, behind, epoch_key
from mlpconv.training import Recipe, find_recipe

FAST: dict[str, Any] = {"epochs": 2, "batch_size": 16, "precision": "fp32"}


@pytest.fixture(scope="module", autouse=True)
def _no_sync() -> Iterator[None]:
    """Skip fsync: no test here loses power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def data() -> Dataset:
    def split(length: int, seed: int) -> Split:
        labels = np.arange(length, dtype=np.int64) % 2
        images = np.random.default_rng(seed).integers(0, 256, (length, 1, 8, 8), dtype=np.uint8)
        images[labels == 1, :, :4] //= 8
        return Split(images, labels)

    return Dataset("tiny", ("even", "odd"), {"train": split(48, 0), "val": split(16, 1)}, (), "f" * 64)


@pytest.fixture(scope="module")
def finished(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("search") / "study"
    return run_search(data, ["width=0.1..0.6", "depth=1..3"], out=out, trials=8, prune=False, **FAST)


def test_the_front_has_no_beaten_trial_and_misses_none(finished: Any) -> None:
    rows = [row for row in finished.trials if row.state == "complete"]
    assert len(rows) == 8
    for row in finished.front:
        better = [r for r in rows if (r.macs, r.error) != (row.macs, row.error)]
        assert not any(r.macs <= row.macs and r.error <= row.error for r in better)
    for row in rows:
        assert any(r.macs <= row.macs and r.error <= row.error for r in finished.front)
    assert finished.best.error == min(row.error for row in rows)


def test_the_cost_is_that_of_the_trained_network(finished: Any, data: Dataset) -> None:
    row = finished.front[0]
    model = mlpconv.load(finished.folder / "trials" / f"{row.number:04d}").model
    profile = mlpconv.analysis.profile(model, (1, 8, 8))
    assert (profile.totals.macs, profile.totals.params) == (row.macs, row.parameters)


def test_the_files_of_a_search(finished: Any) -> None:
    folder = finished.folder
    with open(folder / "trials.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in table] == list(range(8))
    assert {path.name for path in (folder / "recipes").iterdir()} == {
        f"trial-{row.number:04d}.json" for row in finished.front
    }
    assert (folder / "pareto.png").stat().st_size > 10_000
    best = find_recipe(f"best-of:{folder}", "tiny")
    assert {name: getattr(best, name) for name in finished.best.settings} == finished.best.settings
    assert best.epochs == 2
    assert not list((folder / "trials").glob("*/checkpoints"))
    assert set(finished.importance) == {"width", "depth"}


def test_the_recipe_of_a_trial_trains_it_again(finished: Any, data: Dataset, tmp_path: Path) -> None:
    row = finished.front[-1]
    recipe = finished.folder / "recipes" / f"trial-{row.number:04d}.json"
    run = mlpconv.fit(data, recipe, out=tmp_path / "run", report=False, progress=None)
    assert 1 - run.classifier.info["metrics"]["val_accuracy"] == row.error


def test_the_same_seed_gives_the_same_search(finished: Any, data: Dataset, tmp_path: Path) -> None:
    ranges = ["width=0.1..0.6", "depth=1..3"]
    first = run_search(data, ranges, out=tmp_path / "again", trials=1, prune=False, **FAST)
    again = run_search(data, ranges, out=tmp_path / "again", trials=3, prune=False, **FAST)
    assert len(first.trials) == 1
    assert again.trials == finished.trials[:3]


def test_limits_are_kept_and_refused_trials_are_not_counted(data: Dataset, tmp_path: Path) -> None:
    limits = CostLimits(macs=40_000)
    result = run_search(data, ["width=0.1..0.9"], out=tmp_path / "s", trials=3, limits=limits, **FAST)
    trained = [row for row in result.trials if row.state != "refused"]
    assert len(trained) == 3
    assert len(result.trials) > 3
    assert all(row.macs <= 40_000 for row in trained)
    assert not any((tmp_path / "s" / "trials" / f"{r.number:04d}").exists() for r in result.trials if r not in trained)


def test_limits_that_no_network_keeps(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_trials, "MAX_REFUSED", 12)
    with pytest.raises(UsageError, match="none of 12 sampled networks .* raise the limits"):
        run_search(data, ["width=0.1..0.9"], out=tmp_path / "s", trials=1, limits=CostLimits(parameters=10), **FAST)


def test_excess() -> None:
    assert CostLimits().excess(NetworkCost(5, 5)) == 0
    assert CostLimits(macs=4, parameters=10).excess(NetworkCost(5, 5)) == 0.25


class Row:
    def __init__(self, number: int, macs: int, *errors: float) -> None:
        self.number = number
        self.user_attrs = {"macs": macs} | {epoch_key(i): error for i, error in enumerate(errors, 1)}


def test_a_trial_is_behind_the_median_of_cheaper_ones() -> None:
    rows: Any = [Row(i, 100, 0.9, 0.1 * i) for i in range(1, 5)]  # errors at epoch 2: 0.1 to 0.4, median 0.25
    assert behind(rows, 9, 100, 2, 0.26)
    assert not behind(rows, 9, 100, 2, 0.25)
    assert not behind(rows, 9, 99, 2, 0.9)  # no rival is as cheap
    assert not behind(rows, 9, 100, 3, 0.9)  # nobody has reached epoch 3
    assert not behind(rows, 4, 100, 2, 0.9)  # a trial is no rival of itself


def test_a_bad_trial_is_pruned(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_trials, "MIN_RIVALS", 2)
    settings = {**FAST, "epochs": 4}
    ranges = ["lr=0.000001,0.05"]
    result = run_search(data, ranges, out=tmp_path / "s", trials=6, width=0.1, optimizer="sgd", **settings)
    assert {row.state for row in result.trials} == {"complete", "pruned"}
    assert all(row.settings["lr"] == 0.000001 for row in result.trials if row.state == "pruned")


def test_failing_trials_are_recorded_and_stop_the_search(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "MAX_FAILURES", 3)
    with pytest.raises(TrainingError, match="3 trials failed in a row; the last one: .* became (nan|inf|NaN)"):
        run_search(data, ["lr=10000.0..100000.0"], out=tmp_path / "s", trials=50, optimizer="sgd", width=0.2, **FAST)
    with open(tmp_path / "s" / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["failed"] * 3
    assert all(row["reason"] for row in rows)


def test_a_search_over_settings_that_do_not_fit_the_data(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_trials, "MAX_REFUSED", 5)
    with pytest.raises(UsageError, match="odd number"):
        run_search(data, ["kernel=2,4"], out=tmp_path / "s", trials=2, **FAST)


def test_the_end_of_the_time_leaves_a_trial_open_and_it_continues(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges, settings = ["width=0.1..0.6", "depth=1..3"], {**FAST, "epochs": 5}
    lines: list[str] = []
    clock = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(searching.time, "monotonic", lambda: next(clock))
        result = run_search(data, ranges, out=tmp_path / "s", seconds=9, log=lines.append, **settings)
    assert [row.state for row in result.trials] == ["open"]
    assert "its state is saved" in lines[-1]
    result = run_search(data, ranges, out=tmp_path / "s", trials=1, **settings)
    assert [row.state for row in result.trials] == ["complete"]
    straight = run_search(data, ranges, out=tmp_path / "straight", trials=1, **settings)
    assert result.trials == straight.trials


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"over": ["width=0.1..0.7", "depth=1..3"]}, r"over width=0.1..0.6 depth=1..3, not over width=0.1..0.7"),
        ({"epochs": 3}, "with epochs=2, got epochs=3"),
        ({"limits": CostLimits(macs=9)}, "max_macs=None, got 9"),
    ],
)
def test_another_search_in_the_folder_is_refused(
    finished: Any, data: Dataset, change: dict[str, Any], said: str
) -> None:
    options = {"over": ["width=0.1..0.6", "depth=1..3"], **FAST, **change}
    journal = (finished.folder / "journal.log").read_bytes()
    with pytest.raises(UsageError, match=said):
        run_search(data, options.pop("over"), out=finished.folder, trials=99, **options)
    assert len((finished.folder / "journal.log").read_bytes()) <= len(journal) + 300  # no trial was added


def test_other_images_are_refused(finished: Any, data: Dataset) -> None:
    other = Dataset(data.name, data.classes, data.splits, (), "0" * 64)
    with pytest.raises(UsageError, match="on other images"):
        run_search(other, ["width=0.1..0.6", "depth=1..3"], out=finished.folder, trials=99, **FAST)


def test_what_a_search_needs(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a search needs an end"):
        run_search(data, ["width=0.1..0.6"], out=tmp_path / "s")
    with pytest.raises(UsageError, match="SQLite loses trials"):
        run_search(data, ["width=0.1..0.6"], out=tmp_path / "s", trials=1, store="sqlite:///x.db")
    with pytest.raises(RunFolderError, match=r"the store HOST/x cannot be opened|cannot be opened"):
        run_search(data, ["width=0.1..0.6"], out=tmp_path / "s", trials=1, store="nosuch://me:secret@HOST/x")
    train = Dataset("tiny", data.classes, {"train": data.split("train")}, (), "f" * 64)
    with pytest.raises(MissingSplit, match="pass val_fraction=0.2"):
        run_search(train, ["width=0.1..0.6"], out=tmp_path / "s", trials=1, val_fraction=0.0, **FAST)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="is not a search .it contains thesis.tex"):
        run_search(data, ["width=0.1..0.6"], out=tmp_path / "mine", trials=1)
    with pytest.raises(UsageError, match=r"best-of:.* is not a finished search .*give the folder that"):
        find_recipe(f"best-of:{tmp_path}", "tiny")


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["search", "digits", "--over", "width=0.1..0.3", "depth=1,3", "--epochs", "1", "--budget", "1h"]
    words += ["--set", "precision=fp32", "batch_size=256"]
    assert main([*words, "--trials", "2", "--max-parameters", "50k"]) == 0
    output = capsys.readouterr().out
    assert "Pareto front of 2 complete" in output
    assert "mlpconv train digits --recipe best-of:searches/digits" in output
    assert main([*words, "--trials", "2", "--max-parameters", "50k", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["trials"] == {"complete": 2}
    assert main(["train", "digits", "--recipe", "best-of:searches/digits", "--epochs", "1"]) == 0
    assert mlpconv.load("runs/digits-001").info["recipe"]["width"] == result["pareto"][-1]["width"]
    assert Recipe().width != result["pareto"][-1]["width"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--over", "widht=1..2", "--trials", "1"], "did you mean 'width'?"),
        (["--over", "width=1..2"], "--budget 2h or --trials 50"),
        (["--over", "width=1..2", "--budget", "soon"], "expected a duration"),
        (["--over", "width=1..2", "--trials", "0"], "at least 1"),
        (["--over", "width=1..2", "--trials", "1", "--max-macs", "lots"], "500k, 50M or 1.5G"),
    ],
)
def test_bad_usage_of_the_command_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "digits", *words]) == 2
    assert said in capsys.readouterr().err
