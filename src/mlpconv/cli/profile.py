"""`mlpconv profile`: cost and receptive field of a network, layer by layer."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from cyclopts import Parameter

from mlpconv.cli.options import Switch, check_can_be_written, check_from_one, image_size

if TYPE_CHECKING:
    from mlpconv.analysis import Profile

__all__ = ["profile"]

SPARE = ("MAC/byte", "start", "padded", "output", "activation", "stride")
"""Columns to drop on a narrow terminal, in this order."""
MAX_PIXELS = 900
"""Longest side, in pixels, at which an image is drawn, if its file has a higher resolution than the network's input."""


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
    """Report parameters, multiply-adds, memory and receptive field of each layer.

    One MAC is one multiply-add; biases, pooling and other elementwise operations are counted separately.

    Parameters
    ----------
    model
        A model file, a run folder, an architecture such as nin_cifar10, or another library's: torchvision:resnet50,
        timm:convnext_tiny.
    input
        Channels, height and width of an image, such as 3x32x32. Default: the model's own input size.
    batch
        Batch size; operations and bytes are those of the whole batch.
    html
        Also write a page with charts and the table to this file.
    field
        Also draw the receptive field of one cell of this layer's feature map, to the file --out.
    image
        The image to draw the receptive field on. Default: a blank image.
    cell
        Row and column of the cell, such as 3,4. Default: the middle cell.
    out
        The PNG file for --field.
    json
        Print one JSON object.
    """
    from mlpconv.files import json_bytes, write_atomic

    check_from_one(batch=batch)
    size = image_size(input) if input is not None else None
    drawing = _parse_drawing(field, image, cell, out)
    check_can_be_written(html=html, out=out)
    result = _profile_of(model, size, batch)
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
    """Return the profile of the network with this path or name, on images of (C, H, W) or of its own input size."""
    from dataclasses import replace

    from mlpconv.analysis import profile as analyse
    from mlpconv.inference.open_network import open_network
    from mlpconv.models.external import is_external

    network, default_size = open_network(model, weights=False)
    result = analyse(network, size or default_size, batch=batch)
    # The class name of another library's network is ambiguous: ResNet-18 and ResNet-50 are both ResNet.
    return replace(result, model=model) if is_external(model) else result


class _Drawing(NamedTuple):
    """The layer and cell whose receptive field to draw, and the output file."""

    layer: str
    cell: tuple[int, int] | None
    out: Path


def _parse_drawing(field: str | None, image: Path | None, cell: str | None, out: Path | None) -> _Drawing | None:
    """Return the drawing that the four options describe; raise UsageError if one is missing or malformed."""
    from mlpconv.errors import UsageError

    if field is None:
        for name, value in (("image", image), ("cell", cell), ("out", out)):
            if value is not None:
                raise UsageError(
                    f"--{name} is for --field LAYER, which draws a layer's receptive field: also pass --field."
                )
        return None
    if out is None:
        raise UsageError("--field needs --out FILE.png, the file to draw to.")
    match = re.fullmatch(r"(\d{1,6})[,x](\d{1,6})", cell.strip()) if cell is not None else None
    if cell is not None and match is None:
        raise UsageError(f"--cell is {cell!r}; pass a row and a column, such as 3,4.")
    return _Drawing(field, (int(match[1]), int(match[2])) if match is not None else None, out)


def _draw_field(result: Profile, drawing: _Drawing, image: Path | None) -> None:
    """Draw a layer's receptive field to a file."""
    from mlpconv.cli.reading import finer
    from mlpconv.data.decode import decode
    from mlpconv.plots import receptive_field, save_figure

    channels, rows, columns = result.input_shape
    pixels = None
    if image is not None:
        pixels = finer(decode(image, channels=1 if channels == 1 else 3), (rows, columns), MAX_PIXELS)
    save_figure(receptive_field(result, drawing.layer, pixels, drawing.cell), drawing.out)


def _print_table(result: Profile) -> None:
    """Print the table; on a narrow terminal, drop columns and name them."""
    from rich.cells import cell_len

    from mlpconv.analysis.table import COLUMNS, KIND_COLUMNS, aligned, cells, heading, kind_cells, summary
    from mlpconv.cli.show import WIDEST, open_console

    console, shown = open_console(), list(COLUMNS)
    options = console.options.update(max_width=WIDEST)
    lines = [cells(row) for row in result.rows]
    widest = [tuple(max(column, key=cell_len) for column in zip(*lines, strict=True))] if lines else []
    for column in SPARE:
        if console.measure(_table(result, shown, widest), options=options).maximum > console.width:
            shown.remove(column)
    print(heading(result))
    console.print(_table(result, shown, lines))
    hidden = [column for column in COLUMNS if column not in shown]
    if hidden:
        print(f"Columns that do not fit: {', '.join(hidden)}. Use a wider terminal or --json.")
    print("\n".join([*aligned([KIND_COLUMNS, *kind_cells(result)], 1), "", *summary(result)]))


def _table(result: Profile, shown: list[str], lines: list[tuple[str, ...]]) -> Any:
    """Return a table with these columns of these lines."""
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
