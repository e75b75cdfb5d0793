"""Training progress on the command line: a bar on a terminal, one line per epoch elsewhere, or JSON lines."""

from __future__ import annotations

import json
import sys
from functools import partial

from mlpconv.training.display import Lines
from mlpconv.training.progress import EpochMetrics, Progress
from mlpconv.training.progress_bars import TerminalBar

__all__ = ["make_progress"]


def make_progress(as_json: bool) -> Progress:
    """Return the progress display for JSON output, a terminal, or a pipe."""
    if as_json:
        return JsonLines()
    return TerminalBar() if sys.stdout.isatty() else Lines(partial(print, flush=True))


class JsonLines(Progress):
    """Print one JSON object per epoch or note to stdout."""

    def epoch(self, row: EpochMetrics, epochs: int) -> None:  # noqa: ARG002
        print(json.dumps(row), flush=True)

    def note(self, text: str) -> None:
        print(json.dumps({"note": text}), flush=True)
