"""Tables as wide as the terminal; in a file or a pipe, as wide as their content."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["open_console", "say", "say_table"]

WIDEST = 100_000
"""Columns of output that does not go to a terminal."""


def open_console() -> Console:
    """Return a console on standard output that never wraps or truncates output to a file or pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDEST
    return console


def say_table(console: Console, table: Table, title: str = "") -> None:
    """Print a title, which may be wider than the table, and the table."""
    if title:
        say(console, title, style="italic")
    console.print(table)


def say(console: Console, line: str, style: str = "") -> None:
    """Print a line without wrapping or markup."""
    console.print(Text(line), style=style, soft_wrap=True)
