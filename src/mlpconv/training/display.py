"""Default progress display of `mlpconv.fit`: a progress bar for a person, messages for the logger "mlpconv"."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from mlpconv.training.progress import EpochMetrics, Progress, format_epoch

__all__ = ["Lines", "LogProgress", "default_progress"]

LOGGER = logging.getLogger("mlpconv")


class LogProgress(Progress):
    """Log notes (INFO) and warnings to the logger "mlpconv", and epochs (INFO) unless a bar shows them."""

    def __init__(self, bar: Progress | None = None) -> None:
        self.bar, self._display = bar, bar or Progress()

    def features(self, done: int, total: int) -> None:
        self._display.features(done, total)

    def begin(self, steps: int, done: int, epochs: int) -> None:
        self._display.begin(steps, done, epochs)

    def step(self, step: int, loss: float, accuracy: float, images: int) -> None:
        self._display.step(step, loss, accuracy, images)

    def epoch(self, row: EpochMetrics, epochs: int) -> None:
        self._display.epoch(row, epochs)
        if self.bar is None:
            LOGGER.info(format_epoch(row, epochs))

    def note(self, text: str) -> None:
        LOGGER.info(text)

    def warn(self, text: str) -> None:
        LOGGER.warning(text)

    def end(self) -> None:
        self._display.end()


class Lines(Progress):
    """Pass one line per epoch or note to `write`, such as `print`."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self.write = write

    def epoch(self, row: EpochMetrics, epochs: int) -> None:
        self.write(format_epoch(row, epochs))

    def note(self, text: str) -> None:
        self.write(text)


def default_progress(bar: bool) -> Progress:
    """Return a progress bar for a notebook or a terminal if `bar` is true; messages are logged either way."""
    if bar and in_notebook():
        from mlpconv.training.progress_bars import NotebookBar

        return LogProgress(NotebookBar())
    if bar and sys.stderr is not None and sys.stderr.isatty():
        from mlpconv.training.progress_bars import TerminalBar

        return LogProgress(TerminalBar(stderr=True))
    return LogProgress()


def in_notebook() -> bool:
    """Return whether this process is a notebook kernel (Jupyter, Colab, ...)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None
