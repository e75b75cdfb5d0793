"""Disk errors, signals, concurrent trainers and non-finite values end a run with an error and lose nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch

from mlpconv.errors import CheckpointError, Interrupted, MlpconvError, NonFiniteError, RunFolderError
from mlpconv.training import checkpoint, loop
from mlpconv.training.progress import EpochMetrics, Progress
from mlpconv.training.run_folder import RunFolder

Fit = Callable[..., Any]
Read = Callable[[Path], dict[str, Any]]
ERRNOS = (errno.EIO, errno.ENOSPC, errno.EACCES)


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def digits(
    trainers: Any, recipe_file: Callable[..., Path], results: Read, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[object], dict[str, Any]]:
    """The command of a run of 40 steps, saved at each fifth, but for its folder; and what it ends with."""
    recipe = recipe_file("muon", epochs=8, batch_size=256, checkpoint_minutes=5)
    start = ["train", "digits", "--recipe", recipe, "--out"]
    straight = tmp_path_factory.mktemp("straight") / "run"
    assert trainers(*start, straight, plain=True).code == 0
    return start, results(straight)


# Disks


def test_a_run_with_any_failing_file_call_ends_with_an_error_and_can_be_resumed(
    fit_tiny: Fit, faults: ModuleType, monkeypatch: pytest.MonkeyPatch, results: Read, tmp_path: Path
) -> None:
    def run(folder: Path, act: Callable[[int], None]) -> list[str]:
        with monkeypatch.context() as patch:
            calls = faults.FileCalls(act)
            calls.install(lambda owner, name, value: patch.setattr(owner, name, value, raising=False))
            try:
                fit_tiny(folder, epochs=1)
            except MlpconvError as error:
                calls.names.append(str(error))
        return list(calls.names)

    for folder in (tmp_path / "first", tmp_path / "straight"):
        names = run(folder, lambda _: None)
    straight, sentences = results(tmp_path / "straight"), 0
    for number in range(1, len(names) + 1):
        folder, code = tmp_path / f"fails-at-{number}", ERRNOS[number % 3]
        *_, last = run(folder, faults.fail_at(number, code))
        if last not in names:
            sentences += 1
            assert os.strerror(code) in last and str(folder) in last, names[:number]
            before = checkpoint.latest(folder / "checkpoints")
            assert before[1] == []
        if (folder / "recipe.json").exists():
            fit_tiny(folder, resume=True)
        else:
            fit_tiny(folder, epochs=1)
        assert results(folder) == straight, names[:number]
    assert sentences > 50


def test_a_full_disk_stops_the_run_and_keeps_earlier_checkpoints(
    trainers: Any, digits: tuple[list[object], dict[str, Any]], results: Read, tmp_path: Path
) -> None:
    start, straight = digits
    folder = tmp_path / "run"
    first = folder / "checkpoints" / "step-000000005"
    killed = trainers(*start, folder, plain=True, signal=signal.SIGKILL, when=str(first))
    assert killed.code == -signal.SIGKILL
    before = saved(folder)
    full = trainers("train", "digits", "--out", folder, "--resume", plain=True, file_limit=9000)
    assert full.code == 1
    assert "File too large" in full.output
    assert "--resume" in full.output
    assert full.output.count("mlpconv: ") == 1
    assert "Traceback" not in full.output
    assert "bug" not in full.output
    assert saved(folder) == before
    assert checkpoint.latest(folder / "checkpoints")[1] == []
    assert trainers("train", "digits", "--out", folder, "--resume", plain=True).code == 0
    assert results(folder) == straight


class At(Progress):
    """Act after a step, and record the notes."""

    def __init__(self, step: int, what: Callable[[], object]) -> None:
        self.at, self.what, self.told = step, what, list[str]()

    def step(self, step: int, loss: float, accuracy: float, images: int) -> None:
        if step == self.at:
            self.what()

    def note(self, text: str) -> None:
        self.told.append(text)


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("put", ["nothing", "a file"])
def test_a_removed_run_folder_ends_the_run_with_an_error(fit_tiny: Fit, tmp_path: Path, step: int, put: str) -> None:
    folder = tmp_path / "run"

    def take_away() -> None:
        shutil.rmtree(folder)
        if put == "a file":
            folder.write_text("not a folder")

    with pytest.raises((CheckpointError, RunFolderError), match=str(folder)):
        fit_tiny(folder, progress=At(step, take_away))
    assert [path.name for path in tmp_path.iterdir()] == ([] if put == "nothing" else ["run"])


def test_an_older_checkpoint_that_cannot_be_removed_does_not_stop_the_run(
    fit_tiny: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "rmdir", refuse)
    assert len(fit_tiny(tmp_path / "run").history) == 2
    assert is_whole(tmp_path / "run", 4)


def is_whole(folder: Path, step: int) -> bool:
    found, notes = checkpoint.latest(folder / "checkpoints")
    return found is not None and found[1]["step"] == step and notes == []


# Signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_prints_the_resume_command(
    trainers: Any,
    digits: tuple[list[object], dict[str, Any]],
    results: Read,
    tmp_path: Path,
    number: int,
    code: int,
) -> None:
    start, straight = digits
    folder = tmp_path / "run"
    stopped = trainers(*start, folder, plain=True, signal=number, when=str(folder / "metrics.csv"))
    assert stopped.code == code
    last = stopped.output.splitlines()[-1]
    assert last.startswith("mlpconv: stopped after step ")
    assert last.endswith(f"train digits --out {folder} --resume")
    step = int(last.split()[4])
    assert 5 <= step < 40
    assert is_whole(folder, step)
    done = trainers(*last.partition("To resume: mlpconv ")[2].split(), plain=True)
    assert done.code == 0, done.output
    assert results(folder) == straight


def test_a_second_ctrl_c_interrupts_immediately(fit_tiny: Fit, tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit_tiny(tmp_path / "run", progress=At(3, twice))
    assert is_whole(tmp_path / "run", 2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_saved_step_is_not_saved_again(fit_tiny: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps, real = list[int](), checkpoint.save

    def counted(folder: Path, step: int, *rest: Any) -> Path:
        steps.append(step)
        return real(folder, step, *rest)

    monkeypatch.setattr(checkpoint, "save", counted)
    with pytest.raises(Interrupted):
        fit_tiny(tmp_path / "run", progress=At(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert steps == [1, 2, 3]


# Others in the folder


def test_a_second_trainer_is_refused_with_the_id_of_the_first(trainers: Any, fit_tiny: Fit, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    refused = []

    def second() -> None:
        for resume in (True, False):
            try:
                fit_tiny(folder, resume=resume)
            except RunFolderError as error:
                refused.append(str(error))

    assert len(fit_tiny(folder, progress=At(2, second)).history) == 2
    assert f"in use by process {os.getpid()}" in refused[0]
    assert "is not empty" in refused[1]
    with RunFolder(folder).lock():
        other = trainers("train", "digits", "--out", folder, "--resume", plain=True)
    assert other.code == 1
    assert f"in use by process {os.getpid()}" in other.output
    with RunFolder(folder).lock():
        assert (folder / ".lock").read_text() == f"{os.getpid()}\n"


def test_only_partial_files_of_killed_runs_are_removed(fit_tiny: Fit, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fit_tiny(folder)
    (folder / "figures").mkdir()
    litter = [folder / ".model.safetensors.0a1b2c3d.part", folder / "figures" / ".maps.png.0a1b2c3d.part"]
    mine = [folder / "notes.part", folder / ".hidden", folder / "figures" / "mine.png"]
    for path in litter + mine:
        path.write_text("")
    fit_tiny(folder, resume=True)
    assert [path.exists() for path in litter + mine] == [False] * 2 + [True] * 3


def test_a_folder_with_content_is_not_changed(fit_tiny: Fit, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderError, match="is not empty"):
        fit_tiny(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(RunFolderError, match="contains no run"):
        fit_tiny(tmp_path, resume=True)


@pytest.mark.parametrize("name", ["recipe.json", "data.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'"text"'], ids=range(7))
def test_a_run_whose_files_are_damaged_is_refused(fit_tiny: Fit, tmp_path: Path, name: str, content: bytes) -> None:
    folder = tmp_path / "run"
    fit_tiny(folder, epochs=1)
    (folder / name).write_bytes(content)
    with pytest.raises(RunFolderError, match=f"{name}.* this run cannot be resumed"):
        fit_tiny(folder, resume=True)


def test_a_pipe_instead_of_a_file_does_not_block(fit_tiny: Fit, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fit_tiny(folder, epochs=1)
    (folder / "data.json").unlink()
    os.mkfifo(folder / "data.json")
    with pytest.raises(RunFolderError, match="data.json"):
        fit_tiny(folder, resume=True)


STATES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a word for a number": lambda state: state.update(step="4"),
    "a list for a number": lambda state: state.update(seconds=[]),
    "no step": lambda state: state.pop("step"),
    "two sums": lambda state: state.update(totals=[0.0, 0.0]),
    "sums that are words": lambda state: state.update(totals=["a"] * 3),
    "history that is none": lambda state: state.update(history=None),
    "rows that are none": lambda state: state.update(history=[1, 2]),
    "rows of other columns": lambda state: state["history"][0].update(accuracy=1.0),
    "a row without columns": lambda state: state["history"].append({"epoch": 1}),
}


@pytest.mark.parametrize("change", STATES.values(), ids=STATES.keys())
def test_a_forged_state_is_refused(fit_tiny: Fit, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    folder = tmp_path / "run"
    fit_tiny(folder)
    (tensors, state), _ = whole(folder)
    change(state)
    checkpoint.save(folder / "checkpoints", 4, tensors, state)
    with pytest.raises(CheckpointError, match="does not fit this network and recipe"):
        fit_tiny(folder, resume=True)


def whole(folder: Path) -> tuple[checkpoint.Checkpoint, list[str]]:
    found, notes = checkpoint.latest(folder / "checkpoints")
    assert found is not None
    return found, notes


GROUPS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no optimiser": lambda tensors: tensors.pop("optimizer"),
    "no average": lambda tensors: tensors.pop("averaged"),
    "a weight less": lambda tensors: tensors["model"].pop(min(tensors["model"])),
    "a weight more": lambda tensors: tensors["model"].update(more=torch.zeros(1)),
    "a weight of another shape": lambda tensors: tensors["model"].update({min(tensors["model"]): torch.zeros(2, 3)}),
    "momentum of nothing": lambda tensors: tensors["optimizer"].update({"0.99.momentum_buffer": torch.zeros(1)}),
    "a name that is no number": lambda tensors: tensors["optimizer"].update({"a.b.c": torch.zeros(1)}),
    "a name without points": lambda tensors: tensors["optimizer"].update(momentum=torch.zeros(1)),
    "momentum of another shape": lambda tensors: tensors["optimizer"].update({"0.0.momentum_buffer": torch.zeros(2)}),
}


@pytest.mark.parametrize("change", GROUPS.values(), ids=GROUPS.keys())
def test_the_checkpoint_of_another_network_is_refused(
    fit_tiny: Fit, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    folder = tmp_path / "run"
    fit_tiny(folder)
    (tensors, state), _ = whole(folder)
    change(tensors)
    checkpoint.save(folder / "checkpoints", 4, tensors, state)
    with pytest.raises(CheckpointError, match="does not fit this network and recipe"):
        fit_tiny(folder, resume=True)


def test_a_run_with_only_damaged_checkpoints_is_refused(fit_tiny: Fit, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fit_tiny(folder)
    for name in saved(folder):
        (folder / "checkpoints" / name / "state.json").write_text("")
    with pytest.raises(
        CheckpointError, match="no intact checkpoint is left in .*start a new run.*state.json is damaged"
    ):
        fit_tiny(folder, resume=True)


# Numbers


def finite(folder: Path) -> bool:
    """Return whether all values in checkpoints and the model file are finite."""
    files = [*folder.rglob("model.safetensors"), *folder.rglob("averaged.safetensors")]
    return len(files) > 0 and all(
        bool(torch.isfinite(value).all()) for path in files for value in safetensors.torch.load_file(path).values()
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_non_finite_weight_stops_the_run_before_it_is_saved(
    fit_tiny: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bad: float, step: int
) -> None:
    real = loop.StepEngine.__call__

    def poisoned(self: loop.StepEngine, batch: Any, number: int) -> Any:
        outcome = real(self, batch, number)
        if number == step:
            with torch.no_grad():
                self.model.first_conv.weight.view(-1)[0] = bad
        return outcome

    monkeypatch.setattr(loop.StepEngine, "__call__", poisoned)
    folder = tmp_path / "run"
    with pytest.raises(NonFiniteError, match=rf"weight became NaN or infinite at step {step + 1} .*lr=0.1"):
        fit_tiny(folder)
    assert is_whole(folder, step)
    assert finite(folder)
    monkeypatch.undo()


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_an_extreme_learning_rate_stops_the_run_with_advice(fit_tiny: Fit, tmp_path: Path, norm: str) -> None:
    folder = tmp_path / "run"
    with pytest.raises(NonFiniteError, match="became .*lower learning rate"):
        fit_tiny(folder, lr=1e6, epochs=50, norm=norm, momentum=0.999, schedule="constant", ema=0.0, init="he")
    assert finite(folder)
    assert whole(folder)[1] == []


def test_a_nan_validation_loss_stops_the_run(fit_tiny: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loop.Trainer, "validate", lambda *_: (float("nan"), 0.5))
    with pytest.raises(NonFiniteError, match="validation loss became nan at step 2"):
        fit_tiny(tmp_path / "run")
    assert is_whole(tmp_path / "run", 1)


def test_restored_history_rows_have_all_columns(fit_tiny: Fit, tmp_path: Path) -> None:
    rows: list[EpochMetrics] = fit_tiny(tmp_path / "run").history
    head = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert head == ",".join(rows[0])
    assert head.startswith("epoch,step,train_loss,train_accuracy,val_loss,val_accuracy,lr,images_per_second,seconds")
    again: list[EpochMetrics] = fit_tiny(tmp_path / "run", resume=True).history
    assert again == rows
    assert json.loads(json.dumps(again)) == rows
