"""The default progress of `fit`: a bar in a notebook or a terminal, and messages in the log."""

from __future__ import annotations

import ast
import io
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import mlpconv
from mlpconv.data import Dataset
from mlpconv.errors import Interrupted, UsageError
from mlpconv.training import Progress
from mlpconv.training.display import LogProgress, default_progress
from mlpconv.training.loop import Trainer
from mlpconv.training.progress_bars import NotebookBar, TerminalBar

Fit = Callable[..., Any]
PACKAGE = Path(mlpconv.__file__).parent


class Cell:
    """A notebook cell that records every state of its output."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, str]] = []
        self.shown = 0

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Cell:
        assert raw
        assert display_id
        self.shown += 1
        self.outputs.append(bundle)
        return self

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.outputs.append(bundle)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """Simulate the kernel of a notebook."""
    cell = Cell()
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    display.display = cell.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return cell


def noted(tiny: Dataset, *notes: str) -> Dataset:
    return Dataset(tiny.name, tiny.classes, tiny.splits, notes, tiny.fingerprint)


def levels(caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    return {record.getMessage(): record.levelname for record in caplog.records if record.name == "mlpconv"}


def test_a_script_logs_notes_and_epochs_and_prints_nothing(
    fit_tiny: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "mlpconv"):
        fit_tiny(tmp_path / "run", ema_every=500)
    told = levels(caplog)
    assert told["precision fp32, as requested"] == "INFO"
    assert [text.split()[1] for text, level in told.items() if text.startswith("epoch ")] == ["1/2", "2/2"]
    assert [level for text, level in told.items() if text.startswith("ema_every=500 is more")] == ["WARNING"]
    assert capsys.readouterr() == ("", "")


def test_notes_on_the_data_are_shown_without_logging_set_up(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mlpconv.fitting.summarise", lambda *_: None)
    monkeypatch.setattr(logging.getLogger("mlpconv"), "propagate", False)  # as where nothing has set up logging
    mlpconv.fit(noted(tiny, "two files were skipped"), out=tmp_path / "run", width=0.1, epochs=1)
    shown = capsys.readouterr()
    assert "two files were skipped\n" in shown.err
    assert "precision" not in shown.err
    assert shown.out == ""


def test_a_notebook_shows_one_bar_that_completes(fit_tiny: Fit, tmp_path: Path, cell: Cell) -> None:
    fit_tiny(tmp_path / "run")
    assert cell.shown == 1
    first, *_, last = cell.outputs
    assert '<progress value="0" max="4"' in first["text/html"]
    assert "epoch 1/2  0%" in first["text/plain"]
    assert '<progress value="4" max="4"' in last["text/html"]
    assert re.search(r"^epoch 2/2  100%  loss \d\.\d{3}  \d+\.\d%$", last["text/plain"], re.MULTILINE)
    assert re.search(r"^epoch 2/2  train: loss .* val: loss ", last["text/plain"], re.MULTILINE)


def test_the_bar_of_a_resumed_run_starts_at_its_step(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 100.0, 160.0, 160.0, 160.0, 160.0])
    monkeypatch.setattr("mlpconv.training.progress_bars.time", SimpleNamespace(monotonic=lambda: next(times)))
    bar = NotebookBar()
    bar.begin(steps=20, done=10, epochs=4)
    bar.step(step=12, loss=0.5, accuracy=0.75, images=9)  # two steps a minute
    told = [output["text/plain"] for output in cell.outputs]
    assert told == ["epoch 3/4  50%  ", "epoch 3/4  60%  loss 0.500  75.0%  4.0 min left"]


def test_a_bar_is_redrawn_at_a_limited_rate(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpconv.training.progress_bars.time", SimpleNamespace(monotonic=lambda: 7.0))
    bar = NotebookBar()
    bar.begin(steps=1000, done=0, epochs=1)
    for step in range(1, 1000):
        bar.step(step=step, loss=0.5, accuracy=0.75, images=step)
    assert len(cell.outputs) == 1
    bar.end()
    assert 'value="999"' in cell.outputs[-1]["text/html"]


def test_a_bar_can_be_disabled(
    fit_tiny: Fit, tmp_path: Path, cell: Cell, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for number, silent in enumerate((False, None, Progress())):
        caplog.clear()
        with caplog.at_level(logging.INFO, "mlpconv"):
            fit_tiny(tmp_path / str(number), progress=silent, epochs=1)
        assert bool(levels(caplog)) is not isinstance(silent, Progress)
    assert cell.outputs == []
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_progress(bar=True).bar is None  # type: ignore[attr-defined]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    shown = default_progress(bar=True)
    assert isinstance(shown, LogProgress)
    assert isinstance(shown.bar, TerminalBar)
    assert shown.bar.console.stderr
    assert default_progress(bar=False).bar is None  # type: ignore[attr-defined]
    shown.bar.console = shown.bar.bar.live.console = Console(file=io.StringIO(), force_terminal=True, width=100)
    shown.begin(steps=4, done=0, epochs=2)
    shown.step(step=1, loss=1.5, accuracy=0.25, images=128)
    assert shown.bar.bar.tasks[0].completed == 1
    shown.end()


def test_a_terminal_shows_the_features_in_a_bar_of_their_own() -> None:
    bar = TerminalBar()
    bar.console = Console(file=io.StringIO(), force_terminal=True, width=100)
    shown = LogProgress(bar)
    shown.features(30, 120)
    assert bar.feature_bar is not None
    text = Console(width=100, file=io.StringIO(), record=True)
    text.print(bar.feature_bar)
    assert "features" in (line := text.export_text())
    assert "30 of 120" in line
    first = bar.feature_bar
    shown.features(120, 120)
    assert bar.feature_bar is None
    assert first.finished
    shown.features(1, 7)  # another network
    shown.end()
    assert bar.feature_bar is None


def test_a_notebook_shows_the_features_before_the_steps(cell: Cell) -> None:
    bar = NotebookBar()
    for done in (50, 100, 120):
        bar.features(done, 120)
    assert cell.outputs[-1]["text/plain"] == "features of 120 of 120 images"
    assert 'value="120" max="120"' in cell.outputs[-1]["text/html"]
    bar.begin(steps=8, done=0, epochs=2)
    assert cell.outputs[-1]["text/plain"].startswith("epoch 1/2")
    assert cell.shown == 1


def test_without_a_stderr_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # pythonw, some services
    assert default_progress(bar=True).bar is None  # type: ignore[attr-defined]


def test_a_custom_progress_gets_warnings_as_notes(fit_tiny: Fit, tmp_path: Path) -> None:
    class Mine(Progress):
        def __init__(self) -> None:
            self.texts: list[str] = []

        def note(self, text: str) -> None:
            self.texts.append(text)

    mine = Mine()
    fit_tiny(tmp_path / "run", progress=mine, ema_every=500, epochs=1)
    assert [text.split()[0] for text in mine.texts] == ["ema_every=500", "classes", "precision"]


# Messages with keyword arguments


def test_an_interrupted_run_explains_how_to_resume_it_from_python(
    fit_tiny: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.advance

    def stopped(trainer: Trainer, batch: Any) -> None:
        real(trainer, batch)
        trainer.stop.signal = 2

    monkeypatch.setattr(Trainer, "advance", stopped)
    with pytest.raises(Interrupted) as caught:
        fit_tiny(tmp_path / "run")
    advice = f"To resume the run, pass out={str(tmp_path / 'run')!r}, resume=True."
    assert str(caught.value) == f"stopped after step 1 of 4; progress up to this step is saved. {advice}"


def test_a_missing_gpu_is_reported_with_keyword_arguments(
    fit_tiny: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match=r"finds no GPU here: use device='cpu' or device='auto'\."):
        fit_tiny(tmp_path / "run", device="cuda")


def literals(path: Path) -> list[str]:
    """Return all string literals of a file except docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
        if isinstance(node.body[0], ast.Expr)
    }
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [str(node.value) for node in constants if id(node) not in documented]


@pytest.mark.parametrize(
    "path", [*sorted((PACKAGE / "training").glob("*.py")), PACKAGE / "fitting.py", PACKAGE / "report" / "summary.py"]
)
def test_no_message_of_training_names_a_command_line_option(path: Path) -> None:
    texts = literals(path)
    assert [text for text in texts if re.search(r"(^|\s)--[a-z]", text)] == []
