"""What a profile says: rows, totals, and both as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from mlpconv.errors import UsageError, did_you_mean
from mlpconv.receptive_field.field import FIRST, LAST, Axis

__all__ = ["AxisField", "LayerProfile", "Profile", "Totals", "axis_field"]

CONVENTION = (
    "1 MAC = 1 multiply-add, of convolutions, linear layers and matrix products; biases, pooling and everything else "
    "are counted apart. Activations are those of inference, in bytes of the model's own number format."
)

NAMED = 5
"""Layers of one ending that a message lists."""


@dataclass(frozen=True)
class AxisField:
    """What the cells of a layer see along one axis of the image, in pixels; pixel 0 has its centre at 0."""

    size: int
    """Pixels a cell sees, as if the image had no border; where cells see different numbers, the most in this image."""
    jump: float | None
    """Pixels from one cell to the next; None where the cells lie in no row (after a global layer)."""
    start: float | None
    """Where the centre of cell 0 is."""
    whole: bool
    """Whether every cell sees all of the image."""
    outside: float | None
    """Share of the cells that see less than `size`, because their field reaches over a border, into padding."""
    spans: tuple[tuple[int, int], ...]
    """First and last pixel of the image seen by each cell, exactly; one pair where they lie in no row."""


@dataclass(frozen=True)
class LayerProfile:
    """A layer, or an operation between layers. Work and bytes are those of the whole batch."""

    name: str
    module: str
    """The module's class, or the operation."""
    kind: str
    """kxk, 1x1, depthwise, linear, matmul, norm, pool, activation, merge or other."""
    shape: tuple[int, ...]
    """Of its result, for one image."""
    params: int
    """Parameters, counted where they are read first."""
    macs: int
    bias_adds: int
    pool_ops: int
    other_ops: int
    activation_bytes: int
    """Memory of its result; 0 for work in place."""
    intensity: float | None
    """Multiply-adds for each byte read or written; None without multiply-adds."""
    field: tuple[AxisField, AxisField] | None
    """Along rows and columns of the image; None where the result does not depend on the image."""
    uncounted: tuple[str, ...] = ()
    """Operations of which the work is not known; it is in none of the numbers."""

    @property
    def padded(self) -> float | None:
        """Share of its cells whose field reaches over a border of the image; None where that has no meaning."""
        if self.field is None:
            return None
        rows, columns = (axis.outside for axis in self.field)
        return None if rows is None or columns is None else 1 - (1 - rows) * (1 - columns)


@dataclass(frozen=True)
class Totals:
    """The sums over all layers."""

    params: int
    """All parameters of the model, those it does not use here included."""
    unused_params: int
    """Parameters that this forward pass does not read, such as auxiliary heads."""
    macs: int
    bias_adds: int
    pool_ops: int
    other_ops: int
    activation_bytes: int
    peak_activation_bytes: int
    """Most bytes of activations alive at once, the images included."""
    intensity: float | None
    """Multiply-adds for each byte that the layers with multiply-adds read or write; None without any."""
    params_share_1x1: float
    macs_share_1x1: float
    activation_share_1x1: float
    by_kind: dict[str, dict[str, int]]
    """For each kind of layer: layers, params, macs, activation_bytes."""


@dataclass(frozen=True)
class Profile:
    """The cost and the receptive field of every layer of a model."""

    model: str
    input_shape: tuple[int, int, int]
    batch: int
    rows: tuple[LayerProfile, ...]
    field: tuple[AxisField, AxisField] | None
    """What the model's output sees, along rows and columns of the image."""
    totals: Totals
    notes: tuple[str, ...]
    """What the reader must know: where fields are upper bounds, which parameters are not used."""

    def __getitem__(self, name: str) -> LayerProfile:
        """The row of this name; KeyError where there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def row(self, name: str) -> LayerProfile:
        """The row of this name, or the only one whose name ends with it; UsageError with the nearest names else."""
        found = [row for row in self.rows if row.name == name] or [
            row for row in self.rows if row.name.endswith(f".{name}")
        ]
        if len(found) > 1:
            named = ", ".join(row.name for row in found[:NAMED])
            more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
            raise UsageError(f"{self.model} has several layers that end in {name[:100]!r}: {named}{more}; name one.")
        if not found:
            known = [row.name for row in self.rows]
            raise UsageError(f"{self.model} has no layer {name[:100]!r}; {did_you_mean(name[:100], known)}")
        return found[0]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: everything but the span of every single cell."""
        rows = []
        for row in self.rows:
            plain = {f.name: getattr(row, f.name) for f in fields(row)}
            rows.append(plain | {"shape": list(row.shape), "padded": row.padded, "field": _plain(row.field)})
        return {
            "model": self.model,
            "input_shape": list(self.input_shape),
            "batch": self.batch,
            "convention": CONVENTION,
            "rows": rows,
            "field": _plain(self.field),
            "totals": asdict(self.totals),
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """The table as text."""
        from mlpconv.analysis.table import as_text

        return as_text(self)


def _plain(field: tuple[AxisField, AxisField] | None) -> dict[str, dict[str, Any]] | None:
    """A field as data, without the span of every single cell."""
    if field is None:
        return None
    shown = [f.name for f in fields(AxisField) if f.name != "spans"]
    return {
        name: {key: getattr(axis, key) for key in shown} for name, axis in zip(("rows", "columns"), field, strict=True)
    }


def axis_field(axis: Axis, shape: Sequence[int], pixels: int) -> AxisField:
    """What a tensor of this shape sees along an axis of `pixels`."""
    spans, grid = _spans(axis, shape), axis.grid
    lengths = [last - first + 1 for first, last in spans]
    if grid is None:  # elements that lie in no row are looked at one by one
        most = max(int((axis.hi - axis.lo).max()) + 1, 0) if axis.lo.isfinite().any() else 0
        whole = bool((axis.lo == 0).all()) and bool((axis.hi == pixels - 1).all())
        return AxisField(most, None, None, whole, None, spans)
    whole = all(length == pixels for length in lengths)
    jump, start = float(grid.jump), float(grid.start)
    if grid.size is None:
        return AxisField(max(lengths), jump, start, whole, None, spans)
    size = int(grid.size)
    return AxisField(size, jump, start, whole, sum(length < size for length in lengths) / len(lengths), spans)


def _spans(axis: Axis, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """First and last pixel for each cell of the grid, or for all elements together; (0, -1) where nothing is seen."""
    grid, others = axis.grid, list(range(-len(shape), 0))
    if grid is not None:
        others.remove(grid.dim)
    lo, hi = (axis.lo.amin(others), axis.hi.amax(others)) if others else (axis.lo, axis.hi)
    lo, hi = lo.reshape(-1), hi.reshape(-1)
    if grid is not None:
        numbers = grid.numbers(shape[grid.dim])
        cells = int(numbers.max()) + 1
        lo = torch.full((cells,), FIRST).scatter_reduce(0, numbers, lo.expand(len(numbers)), "amin")
        hi = torch.full((cells,), LAST).scatter_reduce(0, numbers, hi.expand(len(numbers)), "amax")
    pairs = zip(lo.tolist(), hi.tolist(), strict=True)
    return tuple((0, -1) if first == FIRST else (int(first), int(last)) for first, last in pairs)
