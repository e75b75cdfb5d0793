"""Progress bars of a training run, for a terminal and for a notebook."""

from __future__ import annotations

import html
import time
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mlpconv.training.progress import EpochMetrics, Progress, format_epoch

__all__ = ["NotebookBar", "TerminalBar"]

REDRAW_SECONDS = 0.2  # minimum between updates of a notebook's bar, each of which is a message to a browser


class TerminalBar(Progress):
    """Show a bar over all steps with loss, accuracy, throughput and remaining time, and a line per epoch above it."""

    def __init__(self, stderr: bool = False) -> None:
        self.console = Console(highlight=False, stderr=stderr)
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
        self.feature_bar: Bar | None = None
        self.per_epoch, self.epochs = 1, 1

    def features(self, done: int, total: int) -> None:
        if self.feature_bar is None:
            columns = (TextColumn("features"), BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f}"))
            self.feature_bar = Bar(*columns, TimeRemainingColumn(compact=True), console=self.console, transient=True)
            self.feature_bar.add_task("", total=total)
            self.feature_bar.start()
        self.feature_bar.update(self.feature_bar.task_ids[0], completed=done, total=total)
        if done >= total:
            self.end()

    def begin(self, steps: int, done: int, epochs: int) -> None:
        self.per_epoch, self.epochs = max(steps // epochs, 1), epochs
        first = f"{done // self.per_epoch + 1}/{epochs}"
        self.task = self.bar.add_task("", total=steps, completed=done, epoch=first, loss=0.0, accuracy=0.0, speed=0.0)
        self.bar.start()

    def step(self, step: int, loss: float, accuracy: float, images: int) -> None:
        if self.task is not None:
            task = self.bar.tasks[0]
            epoch = f"{(step - 1) // self.per_epoch + 1}/{self.epochs}"
            epoch_steps = (step - 1) % self.per_epoch + 1
            speed = (task.speed or 0.0) * images / epoch_steps
            self.bar.update(self.task, completed=step, epoch=epoch, loss=loss, accuracy=accuracy, speed=speed)

    def epoch(self, row: EpochMetrics, epochs: int) -> None:
        self.console.print(format_epoch(row, epochs))

    def note(self, text: str) -> None:
        self.console.print(text, style="dim", markup=False)

    def end(self) -> None:
        for bar in filter(None, (self.bar, self.feature_bar)):
            bar.stop()
        self.feature_bar = None


class NotebookBar(Progress):
    """Show a bar over all steps, and the last epoch below it, in one output of a notebook cell; needs no widgets."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.steps = self.epochs = self.per_epoch = 1
        self.done = 0
        self.state = self.last = ""
        self.drawn_at = self.started_at = 0.0
        self.first = 0
        self.preparing = False

    def features(self, done: int, total: int) -> None:
        self.steps, self.done, self.preparing = total, done, True
        if time.monotonic() - self.drawn_at >= REDRAW_SECONDS or done >= total:
            self.draw()

    def begin(self, steps: int, done: int, epochs: int) -> None:
        self.preparing = False
        self.steps, self.done, self.first, self.epochs = steps, done, done, epochs
        self.per_epoch = max(steps // epochs, 1)
        self.started_at = time.monotonic()
        self.draw()

    def step(self, step: int, loss: float, accuracy: float, images: int) -> None:  # noqa: ARG002
        self.done = step
        self.state = f"loss {loss:.3f}  {accuracy:.1%}"
        if time.monotonic() - self.drawn_at >= REDRAW_SECONDS:
            self.draw()

    def epoch(self, row: EpochMetrics, epochs: int) -> None:
        self.last = format_epoch(row, epochs)
        self.draw()

    def end(self) -> None:
        self.draw()

    def text(self) -> str:
        """Return epoch, percentage of the steps, loss, accuracy and remaining minutes as one line."""
        if self.preparing:
            return f"features of {self.done:,} of {self.steps:,} images"
        epoch = min(self.done // self.per_epoch + 1, self.epochs)
        completed = self.done - self.first
        left = (time.monotonic() - self.started_at) * (self.steps - self.done) / completed if completed else 0.0
        remaining = f"  {left / 60:.1f} min left" if left else ""
        return f"epoch {epoch}/{self.epochs}  {self.done / self.steps:.0%}  {self.state}{remaining}"

    def draw(self) -> None:
        """Display the bar, or update it in place."""
        self.drawn_at = time.monotonic()
        lines = [self.text(), *([self.last] if self.last else [])]
        bar = f'<progress value="{self.done}" max="{self.steps}" style="width: 40em"></progress>'
        page = f"{bar}<pre>{html.escape(chr(10).join(lines))}</pre>"
        bundle = {"text/plain": chr(10).join(lines), "text/html": page}
        if self.handle is None:
            self.handle = import_module("IPython.display").display(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)
