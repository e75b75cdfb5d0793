"""A progress bar on stderr, if stderr is a terminal."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import Progress

__all__ = ["Bar"]


class Bar:
    """Show how many of `total` items are done: a context manager, called with the number of completed items."""

    def __init__(self, description: str, total: int) -> None:
        console = Console(stderr=True)
        self._progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(description, total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, done: float) -> None:
        self._progress.update(self._task, completed=done)
