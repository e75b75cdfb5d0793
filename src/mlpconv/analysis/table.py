"""Format a profile as a table: the text of each cell, for plain text, terminal and HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlpconv.analysis.result import AxisField, LayerProfile, Profile

__all__ = [
    "COLUMNS",
    "CONVENTION",
    "KIND_COLUMNS",
    "aligned",
    "as_text",
    "cells",
    "heading",
    "human_bytes",
    "kind_cells",
    "summary",
    "totals_cells",
]

COLUMNS = ("layer", "kind", "output", "params", "MACs", "activation", "MAC/byte", "field", "stride", "start", "padded")
CONVENTION = (
    "1 MAC = 1 multiply-add, of convolutions, linear layers and matrix products; biases, pooling and everything else "
    "are counted separately. Activations are those of inference, in bytes of the model's own dtype."
)
FIELDS = (
    "Field (receptive field), stride and start are pixels, rows×columns, ignoring the image's border; start is the "
    "centre of cell 0, padded the fraction of cells whose field extends into padding."
)
LEFT = 2
"""Number of left-aligned text columns; the others are numbers."""
KIND_COLUMNS = ("kind", "layers", "params", "share", "MACs", "share", "activation", "share")


def cells(row: LayerProfile) -> tuple[str, ...]:
    """Return the text of each column."""
    return (
        row.name,
        row.kind,
        "×".join(map(str, row.shape)) or "1",
        _count(row.params),
        _macs(row.macs, bool(row.uncounted)),
        human_bytes(row.activation_bytes) if row.activation_bytes else "-",
        _ratio(row.intensity),
        _by_axis(row, _size),
        _by_axis(row, lambda axis: _number(axis.jump)),
        _by_axis(row, lambda axis: _number(axis.start)),
        f"{row.padded:.0%}" if row.padded is not None else "-",
    )


def totals_cells(profile: Profile) -> tuple[str, ...]:
    """Return the text of the totals row."""
    totals = profile.totals
    macs = _macs(totals.macs, any(row.uncounted for row in profile.rows))
    sums = (_count(totals.params), macs, human_bytes(totals.activation_bytes))
    return ("total", "", "", *sums, _ratio(totals.intensity), "", "", "", "")


def kind_cells(profile: Profile) -> list[tuple[str, ...]]:
    """Return a row per kind of layer: number of layers, cost, and share of the total."""
    totals, lines = profile.totals, []
    for kind, sums in totals.by_kind.items():
        texts = [kind, f"{sums['layers']:,}"]
        for key, display in (("params", _count), ("macs", _count), ("activation_bytes", human_bytes)):
            total = getattr(totals, key)
            texts += [display(sums[key]), f"{sums[key] / total:.1%}"] if sums[key] else ["-", "-"]
        lines.append(tuple(texts))
    return lines


def summary(profile: Profile) -> list[str]:
    """Return the lines below the table."""
    totals = profile.totals
    shares = (totals.params_share_1x1, totals.macs_share_1x1, totals.activation_share_1x1)
    return [
        "1x1 convolutions: {:.1%} of the parameters, {:.1%} of the MACs, {:.1%} of the activations.".format(*shares),
        f"Peak activation memory: {human_bytes(totals.peak_activation_bytes)}, batch {profile.batch}.",
        f"Counted separately: {totals.bias_adds:,} bias, {totals.pool_ops:,} pooling, {totals.other_ops:,} other ops.",
        CONVENTION,
        FIELDS,
        *profile.notes,
    ]


def as_text(profile: Profile) -> str:
    """Return the table in aligned columns, with the summary below it."""
    text = aligned([COLUMNS, *(cells(row) for row in profile.rows), totals_cells(profile)], LEFT)
    rule = "-" * max(map(len, text))
    table = [text[0], rule, *text[1:-1], rule, text[-1]]
    kinds = aligned([KIND_COLUMNS, *kind_cells(profile)], 1)
    return "\n".join([heading(profile), *table, "", *kinds, "", *summary(profile)]) + "\n"


def aligned(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Return lines of aligned columns; the first `left` columns are left-aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = [str.ljust if index < left else str.rjust for index in range(len(widths))]
    return ["  ".join(s(cell, w) for s, cell, w in zip(sides, line, widths, strict=True)) for line in lines]


def heading(profile: Profile) -> str:
    """Return the title: model, input shape and batch size."""
    return f"{profile.model}, images of {'×'.join(map(str, profile.input_shape))}, batch {profile.batch}"


def human_bytes(count: int) -> str:
    """Return a number of bytes with a binary unit: 786,432 -> 768.0 KiB."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:,.0f} {units[0]}" if units[0] == "B" else f"{size:,.1f} {units[0]}"


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _macs(number: int, incomplete: bool) -> str:
    """Return the multiply-adds, with "?" for operations of unknown cost."""
    return " + ".join([*([_count(number)] if number or not incomplete else []), *["?"] * incomplete])


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _size(axis: AxisField) -> str:
    return "all" if axis.whole and axis.outside is None else str(axis.size)


def _by_axis(row: LayerProfile, display: Callable[[AxisField], str]) -> str:
    """Return "rows×columns", or one value if they agree."""
    if row.field is None:
        return "-"
    rows, columns = map(display, row.field)
    return rows if rows == columns else f"{rows}×{columns}"
