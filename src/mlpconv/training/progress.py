"""What a training run tells whoever watches it; the base says nothing."""

from __future__ import annotations

from typing import Any

__all__ = ["COLUMNS", "EpochMetrics", "Progress", "line"]

EpochMetrics = dict[str, Any]  # one epoch of the history: a line of metrics.csv
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
    """Silent; a subclass shows what it likes."""

    def begin(self, steps: int, done: int, epochs: int) -> None:
        """Training starts, or goes on after `done` of `steps` steps."""

    def step(self, step: int, loss: float, accuracy: float, images: int) -> None:
        """A step is done: mean loss and share of right answers so far in this epoch, and its number of images."""

    def epoch(self, row: EpochMetrics, epochs: int) -> None:
        """An epoch is done."""

    def note(self, text: str) -> None:
        """Something worth a sentence happened."""

    def warn(self, text: str) -> None:
        """Something happened that a person should know before they trust the result; by default a note."""
        self.note(text)

    def end(self) -> None:
        """Training has ended, in whatever way."""


def line(row: EpochMetrics, epochs: int) -> str:
    """An epoch in one line of at most a terminal's width."""
    judged = ""
    if row["val_accuracy"] is not None:
        judged = f"  validation: loss {row['val_loss']:.4f}, {row['val_accuracy']:.2%} right"
    train = f"train: loss {row['train_loss']:.4f}, {row['train_accuracy']:.2%} right"
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  {train}{judged}  {row['images_per_second']:,.0f} images/s"
    )
