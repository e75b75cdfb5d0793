"""The result of a profile: rows and totals, as dataclasses and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from mlpconv.analysis.table import CONVENTION, as_text
from mlpconv.errors import UsageError, did_you_mean
from mlpconv.receptive_field.field import FIRST, LAST, Axis

__all__ = ["AxisField", "LayerProfile", "Profile", "Totals", "axis_field"]

MAX_LISTED = 5
"""Layers that an error about an ambiguous name lists."""


@dataclass(frozen=True)
class AxisField:
    """The receptive field of a layer's cells along one axis of the image, in pixels; the centre of pixel 0 is at 0."""

    size: int
    """Receptive field of a cell, ignoring the image's border; if cells differ, the largest in this image."""
    jump: float | None
    """Stride: pixels from one cell to the next; None if the cells form no grid (after a global layer)."""
    start: float | None
    """Centre of cell 0."""
    whole: bool
    """Whether every cell sees the whole image."""
    outside: float | None
    """Fraction of the cells that see less than `size`, because their field extends into padding."""
    spans: tuple[tuple[int, int], ...]
    """Exact first and last pixel that each cell sees; one pair if the cells form no grid."""


@dataclass(frozen=True)
class LayerProfile:
    """A layer, or an operation between layers. Operations and bytes are those of the whole batch."""

    name: str
    module: str
    """The module's class, or the operation."""
    kind: str
    """kxk, 1x1, depthwise, linear, matmul, norm, pool, activation, merge or other."""
    shape: tuple[int, ...]
    """Output shape, for one image."""
    params: int
    """Parameters that no earlier layer reads."""
    macs: int
    bias_adds: int
    pool_ops: int
    other_ops: int
    activation_bytes: int
    """Bytes of the output; 0 for an in-place operation."""
    intensity: float | None
    """Multiply-adds per byte read or written; None without multiply-adds."""
    field: tuple[AxisField, AxisField] | None
    """Along rows and columns of the image; None if the output does not depend on the image."""
    uncounted: tuple[str, ...] = ()
    """Operations of unknown cost, which the numbers exclude."""

    @property
    def padded(self) -> float | None:
        """Fraction of the cells whose field extends over the image's border; None if the cells form no grid."""
        if self.field is None:
            return None
        rows, columns = (axis.outside for axis in self.field)
        return None if rows is None or columns is None else 1 - (1 - rows) * (1 - columns)


@dataclass(frozen=True)
class Totals:
    """The sums over all layers."""

    params: int
    """All parameters of the model, including those it does not use here."""
    unused_params: int
    """Parameters that this forward pass does not read, such as those of auxiliary heads."""
    macs: int
    bias_adds: int
    pool_ops: int
    other_ops: int
    activation_bytes: int
    peak_activation_bytes: int
    """Peak bytes of live activations, including the images."""
    intensity: float | None
    """Multiply-adds per byte read or written by layers with multiply-adds; None without any."""
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
    """Receptive field of the model's output, along rows and columns of the image."""
    totals: Totals
    notes: tuple[str, ...]
    """Caveats: receptive fields that are upper bounds, unused parameters, operations of unknown cost."""

    def __getitem__(self, name: str) -> LayerProfile:
        """Return the row with this name; raise KeyError if there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def row(self, name: str) -> LayerProfile:
        """Return the row with this name, or the only one whose name ends with it.

        Raises UsageError, with the closest names, if no row or several rows match.
        """
        matches = [row for row in self.rows if row.name == name] or [
            row for row in self.rows if row.name.endswith(f".{name}")
        ]
        if len(matches) > 1:
            names = ", ".join(row.name for row in matches[:MAX_LISTED])
            more = f" and {len(matches) - MAX_LISTED} more" if len(matches) > MAX_LISTED else ""
            raise UsageError(
                f"{self.model} has several layers that end in {name[:100]!r}: {names}{more}; pass the full name."
            )
        if not matches:
            known = [row.name for row in self.rows]
            raise UsageError(f"{self.model} has no layer {name[:100]!r}; {did_you_mean(name[:100], known)}")
        return matches[0]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict of everything except the spans of single cells."""
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
        """Return the table as text."""
        return as_text(self)


def _plain(field: tuple[AxisField, AxisField] | None) -> dict[str, dict[str, Any]] | None:
    """Return a receptive field as a dict, without the spans of single cells."""
    if field is None:
        return None
    names = [f.name for f in fields(AxisField) if f.name != "spans"]
    return {
        name: {key: getattr(axis, key) for key in names} for name, axis in zip(("rows", "columns"), field, strict=True)
    }


def axis_field(axis: Axis, shape: Sequence[int], pixels: int) -> AxisField:
    """Return the receptive field of a tensor of this shape along an axis of `pixels` pixels."""
    spans, grid = _spans(axis, shape), axis.grid
    lengths = [last - first + 1 for first, last in spans]
    if grid is None:  # without a grid, use the largest field of a single element
        size = max(int((axis.hi - axis.lo).max()) + 1, 0) if axis.lo.isfinite().any() else 0
        whole = bool((axis.lo == 0).all()) and bool((axis.hi == pixels - 1).all())
        return AxisField(size, None, None, whole, None, spans)
    whole = all(length == pixels for length in lengths)
    jump, start = float(grid.jump), float(grid.start)
    if grid.size is None:
        return AxisField(max(lengths), jump, start, whole, None, spans)
    size = int(grid.size)
    return AxisField(size, jump, start, whole, sum(length < size for length in lengths) / len(lengths), spans)


def _spans(axis: Axis, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return the first and last pixel of each cell, or of all elements together; (0, -1) if they see no pixel."""
    grid, others = axis.grid, list(range(-len(shape), 0))
    if grid is not None:
        others.remove(grid.dim)
    lo, hi = (axis.lo.amin(others), axis.hi.amax(others)) if others else (axis.lo, axis.hi)
    lo, hi = lo.reshape(-1), hi.reshape(-1)
    if grid is not None:
        numbers = grid.cell_indices(shape[grid.dim])
        cells = int(numbers.max()) + 1
        lo = torch.full((cells,), FIRST).scatter_reduce(0, numbers, lo.expand(len(numbers)), "amin")
        hi = torch.full((cells,), LAST).scatter_reduce(0, numbers, hi.expand(len(numbers)), "amax")
    pairs = zip(lo.tolist(), hi.tolist(), strict=True)
    return tuple((0, -1) if first == FIRST else (int(first), int(last)) for first, last in pairs)
