"""How a training run is shown: a bar on a terminal, a line an epoch elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import sys

from mlpconv.training.progress import EpochMetrics, Progress, line
from mlpconv.training.progress_bars import TerminalBar

__all__ = ["watch"]


def watch(as_json: bool) -> Progress:
    """The right way to show progress for who is reading."""
    if as_json:
        return JsonLines()
    return TerminalBar() if sys.stdout.isatty() else Lines()


class JsonLines(Progress):
    """One JSON object an epoch or note."""

    def epoch(self, row: EpochMetrics, epochs: int) -> None:  # noqa: ARG002
        print(json.dumps(row), flush=True)

    def note(self, text: str) -> None:
        print(json.dumps({"note": text}), flush=True)


class Lines(Progress):
    """One line an epoch or note."""

    def epoch(self, row: EpochMetrics, epochs: int) -> None:
        print(line(row, epochs), flush=True)

    def note(self, text: str) -> None:
        print(text, flush=True)
