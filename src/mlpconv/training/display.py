"""How `mlpconv.fit` shows a run to whoever calls it from Python: a bar for a person, notes for the logger "mlpconv"."""

from __future__ import annotations

import logging
import sys

from mlpconv.training.progress import EpochMetrics, Progress, line

__all__ = ["LogProgress", "default_progress"]

LOGGER = logging.getLogger("mlpconv")


class LogProgress(Progress):
    """Passes notes to the logger "mlpconv", and epochs too where no bar shows them.

    A warning is seen even where a program has not set up logging; notes and epochs are of level INFO.
    """

    def __init__(self, bar: Progress | None = None) -> None:
        self.bar = bar

    def begin(self, steps: int, done: int, epochs: int) -> None:
        if self.bar is not None:
            self.bar.begin(steps, done, epochs)

    def step(self, step: int, loss: float, accuracy: float, images: int) -> None:
        if self.bar is not None:
            self.bar.step(step, loss, accuracy, images)

    def epoch(self, row: EpochMetrics, epochs: int) -> None:
        if self.bar is not None:
            self.bar.epoch(row, epochs)
        else:
            LOGGER.info(line(row, epochs))

    def note(self, text: str) -> None:
        LOGGER.info(text)

    def warn(self, text: str) -> None:
        LOGGER.warning(text)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.end()


def default_progress(bar: bool) -> Progress:
    """Return what suits the place: a bar in a notebook or on a terminal, unless unwanted; notes are logged anyway."""
    if bar and in_notebook():
        from mlpconv.training.progress_bars import NotebookBar

        return LogProgress(NotebookBar())
    if bar and sys.stderr is not None and sys.stderr.isatty():
        from mlpconv.training.progress_bars import TerminalBar

        return LogProgress(TerminalBar(stderr=True))
    return LogProgress()


def in_notebook() -> bool:
    """Whether this is a kernel of Jupyter, Colab or the like, whose front end shows what is displayed."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None
