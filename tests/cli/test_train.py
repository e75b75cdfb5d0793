"""`mlpconv train`: its output, the files it writes, and its errors."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image
from rich.console import Console

import mlpconv
from mlpconv.cli import main
from mlpconv.cli.train import kept_epoch
from mlpconv.cli.training_output import JsonLines, make_progress
from mlpconv.errors import Interrupted, RunFolderError
from mlpconv.fitting import Run
from mlpconv.text import option, resume_hint
from mlpconv.training import Recipe
from mlpconv.training.display import Lines
from mlpconv.training.progress import format_epoch
from mlpconv.training.progress_bars import TerminalBar

QUICK = ("--set", "epochs=1", "width=0.25", "precision=fp32")
ROW: dict[str, Any] = {
    "epoch": 2, "step": 14, "train_loss": 1.25, "train_accuracy": 0.5, "val_loss": 0.75, "val_accuracy": 0.625,
    "lr": 0.1, "images_per_second": 1234.5, "seconds": 3.0, "cpu_seconds": 6.0,
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_prints_its_accuracy_and_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", *QUICK]) == 0
    output = capsys.readouterr().out
    assert "epoch 1/1" in output
    assert "images/s" in output
    (folder,) = (here / "runs").iterdir()
    error = json.loads((folder / "evaluation.json").read_text())["error"]
    assert f"validation accuracy {1 - error:.2%} (epoch 1 of 1)" in output  # what the report says
    for name in ("report.html", "model.safetensors", "metrics.csv", "recipe.json", "data.json", "environment.json"):
        assert (here / "runs" / "digits-001" / name).is_file(), name
    assert str(Path("runs/digits-001/report.html")) in output
    rows = list(csv.DictReader(io.StringIO((here / "runs/digits-001/metrics.csv").read_text())))
    assert [row["epoch"] for row in rows] == ["1"]
    best = mlpconv.load(here / "runs/digits-001").info["metrics"]
    assert float(rows[0]["val_accuracy"]) == best["val_accuracy"]


@pytest.mark.parametrize(
    ("accuracies", "kept", "reported", "text"),
    [
        ([0.8], 0, 0.8, ""),  # a fitted classifier
        ([0.8, 0.85], 1, 0.85, " (epoch 1 of 1)"),
        ([0.8, None, 0.89, 0.88], 3, 0.88, " (epoch 3 of 3; 89.00% in epoch 2 is within one standard error)"),
        ([0.8, 0.92, 0.915], 2, 0.92, " (epoch 2 of 2)"),  # as the report evaluates it
        ([0.9, 0.9], 1, 0.9, " (epoch 1 of 1)"),
        ([0.25, 14 / 48], 1, 1 - 34 / 48, " (epoch 1 of 1)"),  # equal but for the last bit
        ([0.8, 0.91, 0.92], 2, 0.915, " (epoch 2 of 2)"),  # itself the best
        ([0.8, 0.92, 0.91], 2, 0.92 - 1e-12, " (epoch 2 of 2)"),
    ],
)
def test_the_kept_epoch_is_named_and_explained(
    accuracies: list[float | None], kept: int, reported: float, text: str
) -> None:
    history = [{"epoch": epoch, "val_accuracy": accuracy} for epoch, accuracy in enumerate(accuracies)]
    run = SimpleNamespace(classifier=SimpleNamespace(info={"metrics": history[kept]}), history=history)
    assert kept_epoch(cast("Run", run), reported) == text


def test_run_folders_are_numbered(here: Path) -> None:
    assert main(["train", "digits", *QUICK]) == main(["train", "digits", *QUICK]) == 0
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["digits-001", "digits-002"]


def test_json_prints_one_object_per_epoch_and_one_at_the_end(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", *QUICK, "--out", "r", "--json"]) == 0
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    epochs = [entry for entry in lines if "epoch" in entry]
    assert [entry["epoch"] for entry in epochs] == [1]
    assert lines[-1] == {"folder": "r", "model": "r/model.safetensors", "metrics": epochs[0]}


def test_a_folder_of_images_is_trained_on(here: Path) -> None:
    for number, name in enumerate(("rot", "blau")):
        (here / "pictures" / name).mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (11, 11), (40 + index, 0, 200 * number)).save(here / "pictures" / name / f"{index}.png")
    assert main(["train", "pictures", *QUICK, "min_steps=1", "--out", "r"]) == 0
    classifier = mlpconv.load("r")
    assert classifier.classes == ("blau", "rot")
    assert classifier.info["recipe"]["flip"] == "random"


def test_notes_on_the_data_are_printed_and_stored(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (here / "pictures" / name).mkdir(parents=True)
        for index in range(12):
            Image.new("L", (8, 8), 10 * index).save(here / "pictures" / name / f"{index}.png")
    (here / "pictures" / "a" / "broken.png").write_bytes(b"not an image")
    assert main(["train", "pictures", *QUICK, "min_steps=1", "--out", "r"]) == 0
    assert "broken.png" in capsys.readouterr().out
    assert any("broken.png" in note for note in json.loads((here / "r" / "data.json").read_text())["notes"])


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["nosuch"], 2, "there is no folder or data set"),
        (["digits", "--set", "lrr=1"], 2, "did you mean 'lr'"),
        (["digits", "--set", "lr=fast"], 2, "a number"),
        (["digits", "--recipe", "fats"], 2, "did you mean 'fast'"),
        (["digits", "--recipe", "paper"], 2, "not for 'digits'"),
        (["digits", "--precision", "fp16"], 2, "fp32"),
        (["digits", "--on-collapse", "pray"], 2, "repair"),
        (["digits", "--device", "cuda"], 2, "no GPU"),
        (["digits", "--set", "model=nin_cifar11"], 2, "nin_cifar10"),
        (["digits", "--set", "lr"], 2, "give key=value"),
        (["digits", "--epochs", "3", "--set", "epochs=4"], 2, "--epochs 3 and --set epochs=4 differ"),
        (["digits", "--set", "epochs=2", "epochs=3"], 2, "--set epochs=2 and --set epochs=3 differ"),
        (["digits", "--cache-gb", "nan"], 2, "--cache-gb NaN is not accepted: give 0 to"),
        (["digits", "--cache-gb", "inf"], 2, "--cache-gb Infinity is not accepted"),
        (["digits", "--cache-gb", "-1"], 2, "--cache-gb -1.0 is not accepted"),
        (["digits", "--out", "full"], 1, "is not empty: choose another folder, --out FOLDER."),
        (
            ["digits", "--out", "full", "--resume"],
            1,
            "contains no run (no recipe.json); it contains mine.txt: choose",
        ),
        (["full"], 1, ""),
    ],
)
def test_a_usage_error_is_one_line_and_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, part: str
) -> None:
    (here / "full").mkdir()
    (here / "full" / "mine.txt").write_text("keep me")
    assert main(["train", *words]) == code
    output = capsys.readouterr().err
    assert part in output
    assert output.startswith("mlpconv: ")
    assert output.count("\n") == 1
    assert "Traceback" not in output
    assert (here / "full" / "mine.txt").read_text() == "keep me"
    assert not (here / "runs").exists()


def test_an_interruption_prints_the_resume_command(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise Interrupted(f"stopped after step 3 of 9. {resume_hint(Path('my run'))}", 2, Path("my run"))

    monkeypatch.setattr("mlpconv.fitting.fit", interrupted)
    (here / "my data").mkdir()
    assert main(["train", "digits", "--data", "my data"]) == 130
    output = capsys.readouterr().err
    assert "To resume: mlpconv train digits --data 'my data' --out 'my run' --resume\n" in output


def test_messages_name_the_options_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"out": "FOLDER", "resume": True, "on_collapse": "repair", "norm": "batch", "last_relu": False, "clip": 1.5}

    def refused(*_: object, **__: object) -> None:
        raise RunFolderError("; ".join(option(name, value) for name, value in names.items()))

    monkeypatch.setattr("mlpconv.fitting.fit", refused)
    assert main(["train", "digits"]) == 1
    expected = "--out FOLDER; --resume; --on-collapse repair; --set norm=batch; --set last_relu=false; --set clip=1.5"
    assert capsys.readouterr().err == f"mlpconv: {expected}\n"
    assert option("out", "FOLDER") == "out=FOLDER"  # and only there


FLAGS = (
    "epochs",
    "precision",
    "device",
    "on_collapse",
    "source",
    "weights",
    "tune",
    "balance",
    "calibrate",
    "add_classes",
    "teacher",
)


@pytest.mark.parametrize("name", [item.name for item in fields(Recipe) if item.name not in FLAGS])
@pytest.mark.parametrize("join", [" ", "="])
def test_a_recipe_setting_as_an_option_gets_a_hint(capsys: pytest.CaptureFixture[str], name: str, join: str) -> None:
    words = f"--{name.replace('_', '-')}{join}7".split()
    assert main(["train", "digits", *words]) == 2
    output = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert f"{name} is a setting of the recipe: --set {name}=7." in output


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--batchsize", "64"], "--set batch_size=64."),
        (["--nesterov"], "--set nesterov=VALUE."),
        (["--nesterov", "--json"], "--set nesterov=VALUE."),
        (["--lr", "-1"], "--set lr=-1."),
        (["--epoch", "3"], "Did you mean --epochs?"),
        (["--outt", "r"], "Did you mean --out?"),
    ],
)
def test_a_misspelled_option_gets_a_suggestion(capsys: pytest.CaptureFixture[str], words: list[str], part: str) -> None:
    assert main(["train", "digits", *words]) == 2
    assert part in " ".join(capsys.readouterr().err.replace("│", "").split())


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the figures and the report, which take most of the time of a short run."""
    monkeypatch.setattr("mlpconv.fitting.summarise", lambda *_: None)


@pytest.mark.usefixtures("plain")
def test_epochs_override_min_steps(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("red", "blue")):
        (here / "pictures" / name).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (11, 11), (40 + index, 0, 200 * number)).save(here / "pictures" / name / f"{index}.png")
    assert main(["train", "pictures", "--epochs", "3", "--out", "a"]) == 0  # the default of the recipe is 1,000 steps
    assert "3 epochs of the 16 training images are only 3 steps; the recipe's default is" in capsys.readouterr().out
    assert main(["train", "pictures", "--set", "epochs=2", "--out", "b"]) == 0
    assert [len((here / run / "metrics.csv").read_text().splitlines()) - 1 for run in "ab"] == [3, 2]
    for words in (["--epochs", "3"], [], ["--set", "epochs=3", "min_steps=0"], ["--recipe", "fast", "--epochs", "3"]):
        assert main(["train", "pictures", "--out", "a", "--resume", *words]) == 0
    assert main(["train", "pictures", "--out", "a", "--resume", "--epochs", "4"]) == 1
    assert "was started with epochs=3, got epochs=4" in capsys.readouterr().err


@pytest.mark.usefixtures("plain")
def test_resume_without_a_run_starts_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in ([], ["--out", "r"]):
        for started in (True, False):
            assert main(["train", "digits", *QUICK, *out, "--resume"]) == 0
            assert ("There is nothing to resume in" in capsys.readouterr().out) is started
    assert [path.name for path in (here / "runs").iterdir()] == ["digits-001"]


def test_format_epoch_has_losses_accuracies_and_throughput() -> None:
    text = format_epoch(ROW, 120)
    assert text.startswith("epoch   2/120")
    assert "train: loss 1.2500, accuracy 50.00%" in text
    assert "val: loss 0.7500, accuracy 62.50%" in text
    assert "1,234 images/s" in text or "1,235 images/s" in text
    assert "val:" not in format_epoch(ROW | {"val_accuracy": None, "val_loss": None}, 120)


def test_the_display_depends_on_json_and_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_progress(as_json=True), JsonLines)
    assert isinstance(make_progress(as_json=False), Lines)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert isinstance(make_progress(as_json=False), TerminalBar)


def test_the_bar_shows_epoch_loss_accuracy_and_throughput() -> None:
    bar = TerminalBar()
    bar.console = bar.bar.live.console = Console(file=io.StringIO(), force_terminal=True, width=100)
    bar.begin(steps=20, done=5, epochs=4)
    bar.step(step=7, loss=1.5, accuracy=0.25, images=128)
    shown = Console(width=100, file=io.StringIO(), record=True)
    shown.print(bar.bar)
    text = shown.export_text()
    bar.end()
    assert "epoch 2/4" in text
    assert "35 %" in text
    assert "loss 1.500" in text
    assert "25.0%" in text
    assert "images/s" in text


def test_a_run_is_resumed_from_the_command_line(here: Path) -> None:
    assert main(["train", "digits", "--set", "epochs=2", "width=0.25", "precision=fp32", "--out", "a"]) == 0
    shutil.rmtree(here / "a" / "checkpoints" / max((here / "a" / "checkpoints").iterdir()))
    before = mlpconv.load("a").model.state_dict()
    assert main(["train", "digits", "--out", "a", "--resume"]) == 0
    after = mlpconv.load("a").model.state_dict()
    assert all(before[name].equal(after[name]) for name in before)
    assert len((here / "a" / "metrics.csv").read_text().splitlines()) == 3
