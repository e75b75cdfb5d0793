"""The callback interface of a training run, and how an epoch is printed."""

from __future__ import annotations

from typing import Any

__all__ = ["COLUMNS", "EpochMetrics", "Progress", "format_epoch"]

EpochMetrics = dict[str, Any]  # one epoch of the history: a row of metrics.csv
COLUMNS = (
    "epoch",
    "step",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "lr",
    "images_per_second",
    "seconds",
    "cpu_seconds",
)


class Progress:
    """Callbacks of a training run. The base class ignores all of them; override what you need."""

    def features(self, done: int, total: int) -> None:
        """Of `total` images, `done` have their features or the outputs of a teacher, before the first step."""

    def begin(self, steps: int, done: int, epochs: int) -> None:
        """Training starts, or resumes after `done` of `steps` steps."""

    def batch(self, seconds: float) -> None:
        """A batch is loaded, for which the loop waited `seconds`."""

    def step(self, step: int, loss: float, accuracy: float, images: int) -> None:
        """A step is done: mean loss, accuracy and number of images of this epoch so far."""

    def epoch(self, row: EpochMetrics, epochs: int) -> None:
        """An epoch is done."""

    def note(self, text: str) -> None:
        """An informative message."""

    def warn(self, text: str) -> None:
        """A message that the user should know before trusting the result; calls `note` by default."""
        self.note(text)

    def end(self) -> None:
        """Training has ended, normally or with an error."""


def format_epoch(row: EpochMetrics, epochs: int) -> str:
    """Return the metrics of an epoch as one line that fits a terminal."""
    validation = ""
    if row["val_accuracy"] is not None:
        validation = f"  val: loss {row['val_loss']:.4f}, accuracy {row['val_accuracy']:.2%}"
    epoch = f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
    train = f"train: loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.2%}"
    return f"{epoch}  {train}{validation}  {row['images_per_second']:,.0f} images/s"
