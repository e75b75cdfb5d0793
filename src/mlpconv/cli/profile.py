"""`mlpconv profile`: what a network costs and what it sees, layer by layer."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from cyclopts import Parameter

from mlpconv.cli.options import Switch, check_can_be_written, image_size

if TYPE_CHECKING:
    from mlpconv.analysis import Profile

__all__ = ["profile"]

SPARE = ("MAC/byte", "start", "padded", "output", "activation", "stride")
"""Columns that a narrow terminal can do without, the first one first."""
FINEST = 900
"""Dots to which an image is drawn finer than the network takes it, where the file has them."""


def profile(
    model: str,
    /,
    *,
    input: Annotated[str | None, Parameter(name=["--input", "-i"])] = None,  # noqa: A002
    batch: int = 1,
    html: Path | None = None,
    field: str | None = None,
    image: Path | None = None,
    cell: str | None = None,
    out: Path | None = None,
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
    field
        Also draw what one cell of this layer sees of the image, to the file --out.
    image
        The image to draw that on; a blank one if not given.
    cell
        Row and column of the cell, as in 3,4; the middle one if not given.
    out
        The PNG file for --field.
    json
        Print one JSON object, for machines.
    """
    from mlpconv.files import json_bytes, write_atomic

    given = image_size(input) if input is not None else None
    drawing = _asked_to_draw(field, image, cell, out)
    check_can_be_written(html=html, out=out)
    result = _profile_of(model, given, batch)
    if html is not None:
        from mlpconv.analysis.html import as_page

        write_atomic(html, as_page(result).encode())
    if drawing is not None:
        _draw_field(result, drawing, image)
    if json:
        sys.stdout.write(json_bytes(result.to_dict()).decode())
    else:
        _print_table(result)
        for file in filter(None, (html, out)):
            print(f"Written: {file}")


def _profile_of(model: str, size: tuple[int, int, int] | None, batch: int) -> Profile:
    """The profile of the network that a path or name stands for, on images of (C, H, W) or of its usual size."""
    from dataclasses import replace

    from mlpconv.analysis import profile as analyse
    from mlpconv.inference.open_network import open_network
    from mlpconv.models.external import is_external

    network, usual = open_network(model, weights=False)
    result = analyse(network, size or usual, batch=batch)
    # The class of another library's network alone would not tell ResNet-50 from ResNet-18.
    return replace(result, model=model) if is_external(model) else result


class _Drawing(NamedTuple):
    """What to draw, and where to."""

    layer: str
    cell: tuple[int, int] | None
    out: Path


def _asked_to_draw(field: str | None, image: Path | None, cell: str | None, out: Path | None) -> _Drawing | None:
    """The drawing that four options ask for together; UsageError where one of them is missing or makes no sense."""
    from mlpconv.errors import UsageError

    if field is None:
        for name, value in (("image", image), ("cell", cell), ("out", out)):
            if value is not None:
                raise UsageError(f"--{name} is for --field LAYER, which draws what a layer sees: name a layer.")
        return None
    if out is None:
        raise UsageError("--field needs --out FILE.png, the file for the picture.")
    numbers = re.fullmatch(r"(\d{1,6})[,x](\d{1,6})", cell.strip()) if cell is not None else None
    if cell is not None and numbers is None:
        raise UsageError(f"--cell is {cell!r}; a row and a column are accepted, as in 3,4.")
    return _Drawing(field, (int(numbers[1]), int(numbers[2])) if numbers is not None else None, out)


def _draw_field(result: Profile, drawing: _Drawing, image: Path | None) -> None:
    """Write the picture of a layer's receptive field."""
    from mlpconv.cli.reading import finer
    from mlpconv.data.decode import decode
    from mlpconv.plots import receptive_field, save_figure

    channels, rows, columns = result.input_shape
    shown = None
    if image is not None:
        shown = finer(decode(image, channels=1 if channels == 1 else 3), (rows, columns), FINEST)
    save_figure(receptive_field(result, drawing.layer, shown, drawing.cell), drawing.out)


def _print_table(result: Profile) -> None:
    """The table for people; columns that a narrow terminal has no room for are left out, and named."""
    from rich.cells import cell_len

    from mlpconv.analysis.table import COLUMNS, KIND_COLUMNS, aligned, cells, heading, kind_cells, summary
    from mlpconv.cli.show import WIDEST, open_console

    console, shown = open_console(), list(COLUMNS)
    room = console.options.update(max_width=WIDEST)
    lines = [cells(row) for row in result.rows]
    widest = [tuple(max(column, key=cell_len) for column in zip(*lines, strict=True))] if lines else []
    for column in SPARE:
        if console.measure(_table(result, shown, widest), options=room).maximum > console.width:
            shown.remove(column)
    print(heading(result))
    console.print(_table(result, shown, lines))
    hidden = [column for column in COLUMNS if column not in shown]
    if hidden:
        print(f"No room for {', '.join(hidden)}: use a wider terminal or --json.")
    print("\n".join([*aligned([KIND_COLUMNS, *kind_cells(result)], 1), "", *summary(result)]))


def _table(result: Profile, shown: list[str], lines: list[tuple[str, ...]]) -> Any:
    """The table with these columns of these lines."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from mlpconv.analysis.table import COLUMNS, LEFT, totals_cells

    table = Table(box=SIMPLE_HEAD, show_footer=True, pad_edge=False)
    keep = [index for index, column in enumerate(COLUMNS) if column in shown]
    foot = totals_cells(result)
    for index in keep:
        side: Any = "left" if index < LEFT else "right"
        table.add_column(COLUMNS[index], foot[index], justify=side, no_wrap=True, overflow="ellipsis")
    for texts in lines:
        table.add_row(*(Text(texts[index]) for index in keep))
    return table
