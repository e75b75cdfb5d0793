"""What a training run tells whoever watches it; the base says nothing."""

from __future__ import annotations

from typing import Any

__all__ = ["COLUMNS", "Progress", "Row"]

Row = dict[str, Any]  # one epoch of the history: a line of metrics.csv
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
    """Silent; the command line draws a bar or prints lines instead."""

    def begin(self, steps: int, done: int, epochs: int) -> None:
        """Training starts, or goes on after `done` of `steps` steps."""

    def step(self, step: int, loss: float, accuracy: float, images: int) -> None:
        """A step is done: mean loss and share of right answers so far in this epoch, and its number of images."""

    def epoch(self, row: Row, epochs: int) -> None:
        """An epoch is done."""

    def note(self, text: str) -> None:
        """Something worth a sentence happened."""

    def end(self) -> None:
        """Training has ended, in whatever way."""
