"""A progress bar on stderr, if stderr is a terminal; rich is imported only then."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Bar"]


class Bar:
    """Show how many of `total` items are done: a context manager, called with the number of completed items."""

    def __init__(self, description: str, total: int) -> None:
        self._progress: Progress | None = None
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task(description, total=total)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, done: float) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=done)
