"""`mlpconv profile`: what a network costs and what it sees, layer by layer."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mlpconv.cli.options import Switch

if TYPE_CHECKING:
    from mlpconv.analysis import Profile

__all__ = ["profile"]

SPARE = ("MAC/byte", "start", "padded", "output", "activation", "stride")
"""Columns that a narrow terminal can do without, the first one first."""


def profile(
    model: str,
    /,
    *,
    input: Annotated[str | None, Parameter(name=["--input", "-i"])] = None,  # noqa: A002
    batch: int = 1,
    html: Path | None = None,
    json: Switch = False,
) -> None:
    """Count parameters, multiply-adds and memory, and say what each layer sees of the image.

    One MAC is one multiply-add; biases, pooling and other elementwise work are counted apart.

    Parameters
    ----------
    model
        A model file, a run folder, an architecture such as nin_cifar10, or another library's: torchvision:resnet50,
        timm:convnext_tiny.
    input
        Channels, rows and columns of an image, as in 3x32x32; the model's own size if not given.
    batch
        Images at a time: work and bytes are those of all of them.
    html
        Also write a page with a picture and the table to this file.
    json
        Print one JSON object, for machines.
    """
    from mlpconv.analysis import profile as analyse
    from mlpconv.cli.foreign import open_model
    from mlpconv.errors import UsageError
    from mlpconv.files import json_bytes, write_atomic

    given = _parse_size(input) if input is not None else None
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise UsageError(f"--html is {str(html)!r}; a file in a folder that exists is accepted.")
    network, usual = open_model(model)
    result = analyse(network, given or usual, batch=batch)
    if html is not None:
        from mlpconv.analysis.page import as_page

        write_atomic(html, as_page(result).encode())
    if json:
        sys.stdout.write(json_bytes(result.to_dict()).decode())
    else:
        _print_table(result)
        if html is not None:
            print(f"Written: {html}")


def _parse_size(text: str) -> tuple[int, int, int]:
    """(C, H, W) from 3x32x32; UsageError for anything else."""
    from mlpconv.errors import UsageError

    numbers = re.fullmatch(r"(\d{1,6})[x×,](\d{1,6})[x×,](\d{1,6})", text.strip())
    if numbers is None or not all(int(number) for number in numbers.groups()):
        raise UsageError(f"--input is {text!r}; channels, rows and columns are accepted, as in 3x32x32.")
    channels, rows, columns = map(int, numbers.groups())
    return channels, rows, columns


def _print_table(result: Profile) -> None:
    """The table for people; columns that a narrow terminal has no room for are left out, and named."""
    from mlpconv.analysis.table import COLUMNS, heading, summary
    from mlpconv.cli.show import WIDEST, open_console

    console, shown = open_console(), list(COLUMNS)
    room = console.options.update(max_width=WIDEST)
    for column in SPARE:
        if console.measure(_table(result, shown), options=room).maximum > console.width:
            shown.remove(column)
    print(heading(result))
    console.print(_table(result, shown))
    hidden = [column for column in COLUMNS if column not in shown]
    if hidden:
        print(f"No room for {', '.join(hidden)}: use a wider terminal or --json.")
    for line in summary(result):
        print(line)


def _table(result: Profile, shown: list[str]) -> Any:
    """The table with these columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from mlpconv.analysis.table import COLUMNS, LEFT, cells, totals_cells

    table = Table(box=SIMPLE_HEAD, show_footer=True, pad_edge=False)
    keep = [index for index, column in enumerate(COLUMNS) if column in shown]
    foot = totals_cells(result)
    for index in keep:
        side: Any = "left" if index < LEFT else "right"
        table.add_column(COLUMNS[index], foot[index], justify=side, no_wrap=True, overflow="ellipsis")
    for row in result.rows:
        texts = cells(row)
        table.add_row(*(Text(texts[index]) for index in keep))
    return table
