"""Tables for people: as wide as the terminal, or, in a file or a pipe, as wide as they need to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["open_console", "say", "say_table"]

WIDEST = 100_000
"""Columns where there is no terminal that has to break lines."""


def open_console() -> Console:
    """A console on the standard output; where that is no terminal, nothing is folded, cut or left out."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDEST
    return console


def say_table(console: Console, table: Table, title: str = "") -> None:
    """Print a table below its title, which may be longer than the table is wide."""
    if title:
        say(console, title, style="italic")
    console.print(table)


def say(console: Console, line: str, style: str = "") -> None:
    """Print a line as it is: whole, and not read as markup."""
    console.print(Text(line), style=style, soft_wrap=True)
