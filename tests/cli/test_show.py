"""Tables for people, and what verbs ask for alike."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.table import Table

from mlpconv.cli.options import check_from_one
from mlpconv.cli.reading import readable
from mlpconv.cli.show import open_console, say, say_table
from mlpconv.errors import ImageError, UsageError

LONG = " ".join(f"word{number}" for number in range(70))


def long_table() -> Table:
    table = Table()
    table.add_column("name", overflow="fold")
    table.add_row(LONG)
    return table


def test_in_a_pipe_nothing_is_folded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    console = open_console()
    say_table(console, long_table(), f"about {LONG}")
    say(console, f"[red]note[/] {LONG}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"about {LONG}"
    assert lines[-1] == f"[red]note[/] {LONG}"
    assert sum(LONG in line for line in lines) == 3
    assert all(line == line.rstrip() for line in lines)


def test_on_a_terminal_a_table_fits_its_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "61")
    say_table(open_console(), long_table())
    shown = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert {len(line) for line in shown.splitlines()} == {61}


def test_an_option_less_than_one_is_refused_by_its_name() -> None:
    check_from_one(top=1, batch_size=7)
    with pytest.raises(UsageError, match="--batch-size is 0; expected an integer of at least 1"):
        check_from_one(top=1, batch_size=0)


def test_what_cannot_be_read_is_named_and_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    def read(file: Path) -> int:
        if file.name == "a":
            raise ImageError("a is\x1b no image.")
        if file.name == "b":
            raise PermissionError(13, "Permission denied")
        return len(file.name)

    assert list(readable([Path("a"), Path("cde"), Path("b")], read)) == [(Path("cde"), 3)]
    assert capsys.readouterr().err.splitlines() == [
        "mlpconv: skipped: a is\\x1b no image.",
        "mlpconv: skipped: b: Permission denied.",
    ]
