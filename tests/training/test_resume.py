"""Bit-exact resume: after any number of kills, anywhere, with any number of workers."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlpconv.errors import Interrupted
from mlpconv.training import checkpoint, precision
from mlpconv.training.progress import Progress
from mlpconv.training.recipe import Recipe

Results = dict[str, Any]
Read = Callable[[Path], Results]
EPOCHS, BATCH = 3, 256  # of 1,150 digits: five steps an epoch
STEPS = 15


class Reference:
    """Return a recipe file, the result of an undisturbed run, and its seconds."""

    def __init__(self, kind: str, recipe: Path, results: Results, seconds: float) -> None:
        self.kind, self.recipe, self.results, self.seconds = kind, recipe, results, seconds


@pytest.fixture(scope="module", params=["sgd", "muon"])
def reference(
    request: pytest.FixtureRequest,
    trainers: Any,
    recipe_file: Callable[..., Path],
    results: Read,
    tmp_path_factory: pytest.TempPathFactory,
) -> Reference:
    recipe = recipe_file(request.param, epochs=EPOCHS, batch_size=BATCH)
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = trainers("train", "digits", "--recipe", recipe, "--out", folder, plain=True)
    assert ended.code == 0, ended.output
    return Reference(request.param, recipe, results(folder), ended.seconds)


def order(reference: Reference, folder: Path) -> list[object]:
    """Return the command that a script repeats: it starts the run, or resumes it."""
    return ["train", "digits", "--recipe", reference.recipe, "--out", folder, "--resume"]


def finish(trainers: Any, reference: Reference, folder: Path) -> None:
    ended = trainers(*order(reference, folder), plain=True)
    assert ended.code == 0, ended.output


def check_folder(folder: Path) -> None:
    """Assert that all checkpoints and files of the run are intact after a kill."""
    assert checkpoint.latest(folder / "checkpoints")[1] == []
    for path in [*folder.glob("*.json"), *folder.glob("*.csv")]:
        assert path.read_bytes().endswith(b"\n"), path


def batter(trainers: Any, reference: Reference, results: Read, folder: Path, draw: random.Random) -> int:
    """Kill a run at random times, resume with another number of workers, compare the result; return the kills."""
    kills = 0
    for _ in range(5):
        words = [*order(reference, folder), "--set", f"workers={draw.choice([0, 1, 2, 4])}"]
        ended = trainers(*words, plain=True, kill_after=draw.uniform(0, reference.seconds))
        assert ended.code in (0, -signal.SIGKILL), ended.output
        kills += ended.code != 0
        check_folder(folder)
        if ended.code == 0:
            break
    else:
        finish(trainers, reference, folder)
    assert results(folder) == reference.results
    assert not list(folder.rglob(".*.part"))
    assert not list(folder.rglob(".staging-*"))
    return kills


def test_killing_at_random_times_is_bit_identical(
    trainers: Any, reference: Reference, results: Read, tmp_path: Path
) -> None:
    draw, kills, runs = random.Random(reference.kind), 0, 0
    while kills < 10:
        runs += 1
        kills += batter(trainers, reference, results, tmp_path / f"run-{runs}", draw)
    assert kills >= 10


def test_killing_when_a_file_appears_is_bit_identical_with_the_same_command(
    trainers: Any, reference: Reference, results: Read, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for file in (".lock", "data.json", "recipe.json", "environment.json"):
        ended = trainers(*order(reference, folder), plain=True, signal=signal.SIGKILL, when=str(folder / file))
        assert ended.code == -signal.SIGKILL, ended.output
        assert not (folder / "metrics.csv").exists()  # not one epoch was done
        check_folder(folder)
    finish(trainers, reference, folder)
    assert results(folder) == reference.results


@pytest.mark.slow
def test_two_hundred_kills(trainers: Any, reference: Reference, results: Read, tmp_path: Path) -> None:
    draw, kills, runs = random.Random(f"{reference.kind} slow"), 0, 0
    while kills < 100:  # for each of the two references
        runs += 1
        kills += batter(trainers, reference, results, tmp_path / f"run-{runs}", draw)
    assert kills >= 100


def test_the_command_itself_killed_and_resumed_in_new_processes(
    recipe_file: Callable[..., Path], trainers: Any, results: Read, tmp_path: Path
) -> None:
    recipe = recipe_file("sgd", epochs=EPOCHS, batch_size=BATCH)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert trainers("train", "digits", "--recipe", recipe, "--out", straight, plain=True).code == 0
    command = [sys.executable, "-m", "mlpconv", "train", "digits", "--out", str(killed)]
    with subprocess.Popen([*command, "--recipe", str(recipe)], stdout=subprocess.DEVNULL) as process:
        while not (killed / "checkpoints" / "step-000000003").exists():
            assert process.poll() is None
        process.kill()
    assert process.returncode == -signal.SIGKILL
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert results(killed) == results(straight)
    assert (killed / "report.html").is_file()


# In this process: every single file call of a run, every step, every boundary


@pytest.fixture(scope="module", params=["sgd", "muon"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def straight(fit_tiny: Callable[..., Any], kind: str, results: Read, tmp_path: Path) -> Results:
    fit_tiny(tmp_path / "straight", kind)
    return results(tmp_path / "straight")


def dying_run(
    fit: Callable[..., Any],
    faults: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[int], None],
    folder: Path,
    kind: str,
    **settings: Any,
) -> list[str]:
    """Train or resume with `act` before each file call; return the names of the calls."""
    with monkeypatch.context() as patch:
        calls = faults.FileCalls(act)
        calls.install(lambda owner, name, value: patch.setattr(owner, name, value, raising=False))
        try:
            fit(folder, kind, resume=True, recipe=Recipe(), **settings)
        except faults.Killed:
            calls.names.append("killed")
    return list(calls.names)


def test_dying_at_any_file_call_is_bit_identical(
    fit_tiny: Callable[..., Any],
    faults: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    results: Read,
    tmp_path: Path,
) -> None:
    for folder in (tmp_path / "first", tmp_path / "straight"):  # the first also reads what Python imports late
        names = dying_run(fit_tiny, faults, monkeypatch, lambda _: None, folder, "sgd", epochs=1)
    straight = results(tmp_path / "straight")
    # Three files about the run, the network and metrics.csv; a checkpoint at each of two steps.
    assert names.count("replace") == 5
    assert names.count("rename") == 2
    for number in range(1, len(names) + 1):
        folder = tmp_path / f"dies-at-{number}"
        assert dying_run(fit_tiny, faults, monkeypatch, faults.die_at(number), folder, "sgd", epochs=1)[-1] == "killed"
        check_folder(folder)
        dying_run(fit_tiny, faults, monkeypatch, lambda _: None, folder, "sgd", epochs=1)
        assert results(folder) == straight, names[:number]
        assert not list(folder.rglob(".*.part")), names[:number]


@pytest.mark.parametrize("life", [43, 59])
def test_processes_of_a_few_file_calls_each_are_bit_identical(
    fit_tiny: Callable[..., Any],
    faults: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    results: Read,
    tmp_path: Path,
    kind: str,
    straight: Results,
    life: int,
) -> None:
    folder, lives = tmp_path / "run", 1
    while dying_run(fit_tiny, faults, monkeypatch, faults.die_at(life), folder, kind)[-1] == "killed":
        lives += 1
        assert lives < 20
    assert lives >= 3
    assert results(folder) == straight


def test_an_unstable_timer_changes_no_bit(
    fit_tiny: Callable[..., Any],
    faults: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    results: Read,
    tmp_path: Path,
    kind: str,
) -> None:
    """Networks are timed with unstable results: repeated runs, and runs that die at a file call."""
    formats = itertools.cycle(["fp32", "bf16"])

    def moody(_model: object, _batch: object, name: str) -> float:
        return 0.1 if name == mood else 0.3

    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "MIN_MACS", 1)
    monkeypatch.setattr(precision, "time_step", moody)
    mood = next(formats)
    fit_tiny(tmp_path / "straight", kind, precision="auto", epochs=1)
    straight = results(tmp_path / "straight")
    for life in (2, 11, 23, 31):  # before and after each file that tells of the run
        folder = tmp_path / f"dies-at-{life}"
        mood = next(formats)
        dying_run(fit_tiny, faults, monkeypatch, faults.die_at(life), folder, kind, precision="auto", epochs=1)
        mood = next(formats)
        dying_run(fit_tiny, faults, monkeypatch, lambda _: None, folder, kind, precision="auto", epochs=1)
        assert results(folder) == straight


class SignalAt(Progress):
    """Send this process a signal after some steps."""

    def __init__(self, number: int, steps: set[int]) -> None:
        self.number, self.steps = number, steps

    def step(self, step: int, loss: float, accuracy: float, images: int) -> None:
        if step in self.steps:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_stopping_after_any_step_or_before_validation_is_bit_identical(
    fit_tiny: Callable[..., Any], results: Read, tmp_path: Path, kind: str, straight: Results, step: int
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"after step {step} of 4") as stopped:
        fit_tiny(folder, kind, progress=SignalAt(signal.SIGTERM, {step}), checkpoint_minutes=5)
    assert stopped.value.exit_code == 143
    fit_tiny(folder, resume=True)
    assert results(folder) == straight


def test_stopping_after_every_step_is_bit_identical(
    fit_tiny: Callable[..., Any], results: Read, tmp_path: Path, kind: str, straight: Results
) -> None:
    folder, stops = tmp_path / "run", 0
    while True:
        try:
            resume = {"resume": True} if stops else {"checkpoint_minutes": 5}
            fit_tiny(folder, kind, progress=SignalAt(signal.SIGINT, {1, 2, 3, 4}), **resume)
            break
        except Interrupted as stopped:
            stops += 1
            assert stopped.exit_code == 130
    assert stops == 4
    assert results(folder) == straight


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_the_number_of_workers_changes_no_bit(
    fit_tiny: Callable[..., Any], results: Read, tmp_path: Path, kind: str, straight: Results, workers: int
) -> None:
    fit_tiny(tmp_path / "run", kind, workers=workers)
    assert results(tmp_path / "run") == straight


def test_another_seed_changes_every_weight(
    fit_tiny: Callable[..., Any], results: Read, tmp_path: Path, straight: Results, kind: str
) -> None:
    fit_tiny(tmp_path / "run", kind, seed=1)
    other = results(tmp_path / "run")
    weights = [name for name in straight if name.endswith("weight")]
    assert len(weights) > 20
    assert all(other[name] != straight[name] for name in weights)


def test_a_damaged_newest_checkpoint_is_recomputed(
    fit_tiny: Callable[..., Any], results: Read, tmp_path: Path, kind: str, straight: Results
) -> None:
    folder, told = tmp_path / "run", []
    fit_tiny(folder, kind)
    damaged = folder / "checkpoints" / "step-000000004" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    progress = Progress()
    progress.note = told.append  # type: ignore[method-assign]
    fit_tiny(folder, resume=True, progress=progress)
    assert any(str(damaged) in note for note in told)
    assert results(folder) == straight
