"""The runner: the same bits twice, resuming at any run, damaged files, results and predictions."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpconv.claims import workers
from mlpconv.claims.budget import BUDGET, load_images, on_canvas, tuning_images
from mlpconv.claims.claim_files import find_claim
from mlpconv.claims.results import judge_all, read_predictions
from mlpconv.claims.run_cache import DamagedRun, RunCache
from mlpconv.claims.runner import LEAST_SEEDS, RunSettings, count_steps, run_claims
from mlpconv.claims.trial import TUNING_SEEDS, ClaimRun, Measured, run_trial, tuning_trials
from mlpconv.claims.workers import end_pool, start_pool
from mlpconv.errors import DataError, Interrupted, UsageError

RUNS = 2 * (9 + LEAST_SEEDS)  # two arms, three learning rates with three seeds, three seeds


def run(path: Path, out: Path, count: int = 1) -> list[str]:
    """Run the small claim and return the notes."""
    notes: list[str] = []
    settings = RunSettings(out, ("digits",), seeds=LEAST_SEEDS, workers=count)
    run_claims([find_claim(str(path))], settings, lambda done: None, notes.append)
    return notes


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[ClaimRun]:
    """The trials that are trained rather than read from the cache."""
    seen: list[ClaimRun] = []

    def counted(trial: ClaimRun, measure: object) -> Measured:
        seen.append(trial)
        rng = np.random.default_rng(trial.seed)
        return Measured({"error": 50.0 - trial.seed, "train_error": 1.0, "gap": 49.0 - trial.seed},
                        rng.integers(0, 10, 359).astype(np.uint8), 0.5)  # fmt: skip

    monkeypatch.setattr(workers, "run_trial", counted)
    return seen


def without_times(path: Path) -> dict[str, object]:
    stored = json.loads(path.read_text())
    return {key: value for key, value in stored.items() if key not in ("measured_at", "cpu_seconds")}


def test_the_same_command_gives_the_same_bits(claim_path: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(claim_path, tmp_path / name)
    first, second = (tmp_path / name / "digits" / "my-claim" for name in ("a", "b"))
    assert without_times(first.with_suffix(".json")) == without_times(second.with_suffix(".json"))
    assert first.with_suffix(".npz").read_bytes() == second.with_suffix(".npz").read_bytes()
    labels, arms, predictions = read_predictions(tmp_path / "a", "digits", find_claim(str(claim_path)))
    assert arms == ["eight", "two"]
    assert predictions.shape == (2, LEAST_SEEDS, 359)
    stored = json.loads(first.with_suffix(".json").read_text())
    errors = [stored["arms"][arm]["values"]["error"] for arm in arms]
    assert 100 * (predictions != labels).mean(2) == pytest.approx(np.array(errors))
    assert len({tuple(row) for row in predictions.reshape(-1, 359)}) == 2 * LEAST_SEEDS  # every seed differs


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(claim_path: Path, tmp_path: Path) -> None:
    run(claim_path, tmp_path / "one")
    run(claim_path, tmp_path / "two", count=2)
    files = [tmp_path / name / "digits" / "my-claim.npz" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_ctrl_c_does_not_wait_for_the_running_trials() -> None:
    pool = start_pool(2)
    assert pool is not None
    trial = pool.submit(time.sleep, 3600)
    while not trial.running():
        time.sleep(0.01)
    processes = multiprocessing.active_children()
    end_pool(pool, now=True)
    assert isinstance(trial.exception(), BrokenProcessPool)
    assert not any(process.is_alive() for process in processes)


def test_finished_runs_are_reused(claim_path: Path, tmp_path: Path, trained: list[ClaimRun]) -> None:
    run(claim_path, tmp_path)
    assert len(trained) == RUNS
    assert len(set(trained)) == RUNS
    run(claim_path, tmp_path)
    assert len(trained) == RUNS
    changed = claim_path.read_text().replace('"3x3:2 max', '"3x3:3 max')
    claim_path.write_text(changed)
    run(claim_path, tmp_path)
    assert len(trained) == RUNS + RUNS // 2  # one arm is another network


@pytest.mark.parametrize("last", [1, 17, 18, 23])
def test_an_interrupted_run_goes_on_where_it_stopped(
    last: int, claim_path: Path, tmp_path: Path, trained: list[ClaimRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: Callable[..., Measured] = workers.run_trial

    def interrupted(trial: ClaimRun, measure: object) -> Measured:
        if len(trained) == last:
            raise KeyboardInterrupt
        return counted(trial, measure)

    monkeypatch.setattr(workers, "run_trial", interrupted)
    with pytest.raises(Interrupted, match=rf"interrupted after {last} runs?, kept in .*: the same command resumes"):
        run(claim_path, tmp_path)
    monkeypatch.setattr(workers, "run_trial", counted)
    assert not (tmp_path / "digits").exists()
    run(claim_path, tmp_path)
    assert len(trained) == len(set(trained)) == RUNS
    assert (tmp_path / "digits" / "my-claim.json").is_file()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda content: content[:-50],
    "another value": lambda content: content.replace(b'"error": 4', b'"error": 3'),
    "not JSON": lambda _: b"\x00\xff",
    "a list": lambda _: b"[]",
    "no predictions": lambda content: content.replace(b'"predictions"', b'"prediction"'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_run_is_run_again_and_said(
    damage: Callable[[bytes], bytes], claim_path: Path, tmp_path: Path, trained: list[ClaimRun]
) -> None:
    run(claim_path, tmp_path)
    path = RunCache(tmp_path / "runs").path(trained[-1])
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert path.read_bytes() != content
    assert run(claim_path, tmp_path) == [f"{path} is damaged: it is run again."]
    assert len(trained) == RUNS + 1
    assert path.read_bytes() == content


def test_a_run_under_the_name_of_another_is_refused(tmp_path: Path) -> None:
    cache = RunCache(tmp_path)
    first, second = ClaimRun("digits", "a", 1, 0.1), ClaimRun("digits", "a", 2, 0.1)
    cache.put(first, Measured({"error": 1.0}, np.zeros(7, np.uint8), 0.1))
    cache.path(first).rename(cache.path(second))
    assert cache.get(first) is None
    with pytest.raises(DamagedRun):
        cache.get(second)


def test_no_file_is_left_half_written(claim_path: Path, tmp_path: Path, trained: list[ClaimRun]) -> None:
    run(claim_path, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]
    assert len(list((tmp_path / "out" / "runs").iterdir())) == RUNS


def test_the_learning_rate_is_tuned_for_each_arm_on_held_out_images(
    claim_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_up(trial: ClaimRun, measure: object) -> Measured:
        best = 0.2 if trial.words.startswith("3x3:8") else 0.02
        return Measured(
            {"error": abs(trial.learning_rate - best), "train_error": 0.0, "gap": 0.0}, np.zeros(9, np.uint8), 0.1
        )

    monkeypatch.setattr(workers, "run_trial", made_up)
    run(claim_path, tmp_path)
    arms = json.loads((tmp_path / "digits" / "my-claim.json").read_text())["arms"]
    assert (arms["eight"]["learning_rate"], arms["two"]["learning_rate"]) == (0.2, 0.02)
    assert set(arms["two"]["tuning"]) == {"0.02", "0.06", "0.2"}


def test_tuning_never_sees_the_test_images() -> None:
    images = load_images("digits")
    held = tuning_images(images)
    assert len(held.train) + len(held.test) == len(images.train)
    everything = {row.numpy().tobytes() for row in images.train}
    assert {row.numpy().tobytes() for row in held.test} <= everything
    seeds = {trial.seed for trial in tuning_trials(ClaimRun("digits", "x", 3, 0.1)) if trial.tuning}
    assert seeds == set(TUNING_SEEDS)
    assert not seeds & set(range(1, 500))


def test_arms_with_the_same_seed_see_the_same_images_and_other_seeds_others() -> None:
    words = "1x1:2 1x1:K gap"
    first, again, other = (run_trial(ClaimRun("digits", words, seed, 0.06, epochs=0.05)) for seed in (1, 1, 2))
    assert first.values == again.values
    assert (first.predictions == again.predictions).all()
    assert first.values != other.values


def test_deepening_keeps_training_and_changes_the_network() -> None:
    words = "3x3:4 1x1:4 max 1x1:K gap"
    plain = run_trial(ClaimRun("digits", words, 1, 0.06, epochs=0.5))
    deeper = run_trial(ClaimRun("digits", words, 1, 0.06, epochs=0.5, deepen=True))
    assert plain.values["error"] < 80
    assert deeper.values["error"] < 80
    assert (plain.predictions != deeper.predictions).any()


def test_the_callers_random_state_does_not_change() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run_trial(ClaimRun("digits", "1x1:2 1x1:K gap", 1, 0.06, epochs=0.02))
    assert torch.equal(torch.rand(3), expected)


def test_a_canvas_holds_the_image_in_one_quarter() -> None:
    images = load_images("digits")
    canvas = on_canvas(images, seed=3)
    assert canvas.shape.side == 16
    rest = canvas.test - images.test.min()
    assert rest.sum((1, 2, 3)).numpy() == pytest.approx(
        (images.test - images.test.min()).sum((1, 2, 3)).numpy(), rel=1e-4
    )
    quarters = rest.unflatten(2, (2, 8)).unflatten(4, (2, 8)).abs().sum((1, 3, 5))
    assert ((quarters > 0).sum((1, 2)) == 1).all()


def test_progress_counts_every_run(claim_path: Path, tmp_path: Path, trained: list[ClaimRun]) -> None:
    file, seen = find_claim(str(claim_path)), []
    settings = RunSettings(tmp_path, ("digits", "mnist"), seeds=LEAST_SEEDS)  # the claim is about digits only
    run_claims([file], settings, seen.append, lambda text: None)
    assert seen == list(range(1, RUNS + 1))
    assert count_steps([file], settings) == RUNS


@pytest.mark.parametrize("seeds", [-1, 0, 2])
def test_too_few_seeds_are_refused(seeds: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too few for a verdict: give at least 3, or 10"):
        RunSettings(tmp_path, ("digits",), seeds=seeds)


def test_a_damaged_result_is_named(claim_path: Path, tmp_path: Path, trained: list[ClaimRun]) -> None:
    run(claim_path, tmp_path)
    file = find_claim(str(claim_path))
    labels, arms, predictions = read_predictions(tmp_path, "digits", file)
    path = tmp_path / "digits" / "my-claim.npz"
    np.savez(path, labels=labels[:-1], arms=arms, predictions=predictions)
    with pytest.raises(DataError, match=f"mlpconv claims run {file.argument} --data digits --out {tmp_path}` writes"):
        read_predictions(tmp_path, "digits", file)
    path.write_bytes(b"no")
    with pytest.raises(DataError, match="is damaged"):
        read_predictions(tmp_path, "digits", file)
    (tmp_path / "digits" / "my-claim.json").write_text("{")
    with pytest.raises(DataError, match=f"mlpconv claims run {file.argument}"):
        judge_all([file], tmp_path)
    assert set(BUDGET) == {"digits", "mnist", "cifar10"}
