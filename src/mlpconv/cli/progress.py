"""How a training run is shown: a bar on a terminal, a line an epoch elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import sys

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mlpconv.training.progress import Progress, Row

__all__ = ["watch"]


def watch(as_json: bool) -> Progress:
    """The right way to show progress for who is reading."""
    if as_json:
        return JsonLines()
    return TerminalBar() if sys.stdout.isatty() else Lines()


class JsonLines(Progress):
    """One JSON object an epoch or note."""

    def epoch(self, row: Row, epochs: int) -> None:  # noqa: ARG002
        print(json.dumps(row), flush=True)

    def note(self, text: str) -> None:
        print(json.dumps({"note": text}), flush=True)


class Lines(Progress):
    """One line an epoch or note."""

    def epoch(self, row: Row, epochs: int) -> None:
        print(line(row, epochs), flush=True)

    def note(self, text: str) -> None:
        print(text, flush=True)


def line(row: Row, epochs: int) -> str:
    """An epoch in one line of at most a terminal's width."""
    judged = ""
    if row["val_accuracy"] is not None:
        judged = f"  validation: loss {row['val_loss']:.4f}, {row['val_accuracy']:.2%} right"
    train = f"train: loss {row['train_loss']:.4f}, {row['train_accuracy']:.2%} right"
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  {train}{judged}  {row['images_per_second']:,.0f} images/s"
    )


class TerminalBar(Progress):
    """A bar over all steps with loss, accuracy, images a second and the time left; a line for each epoch above it."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.bar = Bar(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  loss {task.fields[loss]:.3f}  {task.fields[accuracy]:.1%}"),
            TextColumn("{task.fields[speed]:,.0f} images/s"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
        )
        self.task: TaskID | None = None
        self.per_epoch, self.epochs = 1, 1

    def begin(self, steps: int, done: int, epochs: int) -> None:
        self.per_epoch, self.epochs = max(steps // epochs, 1), epochs
        first = f"{done // self.per_epoch + 1}/{epochs}"
        self.task = self.bar.add_task("", total=steps, completed=done, epoch=first, loss=0.0, accuracy=0.0, speed=0.0)
        self.bar.start()

    def step(self, step: int, loss: float, accuracy: float, images: int) -> None:
        if self.task is not None:
            task = self.bar.tasks[0]
            epoch = f"{(step - 1) // self.per_epoch + 1}/{self.epochs}"
            within = (step - 1) % self.per_epoch + 1
            speed = (task.speed or 0.0) * images / within
            self.bar.update(self.task, completed=step, epoch=epoch, loss=loss, accuracy=accuracy, speed=speed)

    def epoch(self, row: Row, epochs: int) -> None:
        self.console.print(line(row, epochs))

    def note(self, text: str) -> None:
        self.console.print(text, style="dim", markup=False)

    def end(self) -> None:
        self.bar.stop()
