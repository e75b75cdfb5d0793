"""A profile as a table: the cells as text, shared by the plain table, the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable

from mlpconv.analysis.result import CONVENTION, AxisField, Profile, Row

__all__ = ["COLUMNS", "as_text", "cells", "heading", "human_bytes", "summary", "totals_cells"]

COLUMNS = ("layer", "kind", "output", "params", "MACs", "activation", "MAC/byte", "field", "stride", "start", "padded")
FIELDS = (
    "Field, stride and start are pixels, rows×columns, as if the image had no border; start is the centre of cell 0, "
    "padded the share of cells that see over the border."
)
LEFT = 2
"""The first columns are words, the others numbers."""


def cells(row: Row) -> tuple[str, ...]:
    """One text for each column."""
    return (
        row.name,
        row.kind,
        "×".join(map(str, row.shape)) or "1",
        _count(row.params),
        _count(row.macs),
        human_bytes(row.activation_bytes) if row.activation_bytes else "-",
        f"{row.intensity:.1f}" if row.intensity is not None else "-",
        _both(row, _size),
        _both(row, lambda axis: _number(axis.jump)),
        _both(row, lambda axis: _number(axis.start)),
        f"{row.padded:.0%}" if row.padded is not None else "-",
    )


def totals_cells(profile: Profile) -> tuple[str, ...]:
    """The last row."""
    totals = profile.totals
    sums = (_count(totals.params), _count(totals.macs), human_bytes(totals.activation_bytes))
    return ("total", "", "", *sums, "", "", "", "", "")


def summary(profile: Profile) -> list[str]:
    """What stands below the table."""
    totals = profile.totals
    return [
        f"1x1 convolutions: {totals.params_share_1x1:.1%} of the parameters, {totals.macs_share_1x1:.1%} of the MACs.",
        f"Peak of activations: {human_bytes(totals.peak_activation_bytes)}, batch {profile.batch}.",
        f"Counted apart: {totals.bias_adds:,} of biases, {totals.pool_ops:,} of pools, {totals.other_ops:,} others.",
        CONVENTION,
        FIELDS,
        *profile.notes,
    ]


def as_text(profile: Profile) -> str:
    """The whole table in columns of equal width."""
    lines = [COLUMNS, *(cells(row) for row in profile.rows), totals_cells(profile)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    sides = [str.ljust if i < LEFT else str.rjust for i in range(len(COLUMNS))]
    text = ["  ".join(s(cell, w) for s, cell, w in zip(sides, line, widths, strict=True)) for line in lines]
    rule = "-" * max(map(len, text))
    return "\n".join([heading(profile), text[0], rule, *text[1:-1], rule, text[-1], "", *summary(profile)]) + "\n"


def heading(profile: Profile) -> str:
    """What the table is about."""
    return f"{profile.model}, images of {'×'.join(map(str, profile.input_shape))}, batch {profile.batch}"


def human_bytes(count: int) -> str:
    """Bytes in a unit that leaves few digits: 786,432 -> 768.0 KiB."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:,.0f} {units[0]}" if units[0] == "B" else f"{size:,.1f} {units[0]}"


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _size(axis: AxisField) -> str:
    return "all" if axis.whole and axis.outside is None else str(axis.size)


def _both(row: Row, say: Callable[[AxisField], str]) -> str:
    """Rows × columns, or one number where they agree."""
    if row.field is None:
        return "-"
    rows, columns = map(say, row.field)
    return rows if rows == columns else f"{rows}×{columns}"
