"""What an operation hands back: the new network, and the report that says what became of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from mlpconv.analysis import AxisField, Profile, profile
from mlpconv.analysis.table import human_bytes
from mlpconv.surgery.proof.accept import deep_copy
from mlpconv.surgery.proof.compare import Difference, Proof, isolated_eval

__all__ = ["Figures", "Report", "Surgery", "make_report", "measure_figures"]

RUNS = 3


@dataclass(frozen=True)
class Figures:
    """What a network costs, for one image, and what its output sees."""

    parameters: int
    macs: int
    """Multiply-adds."""
    activation_bytes: int
    """Of all results."""
    peak_activation_bytes: int
    """Alive at once, at most."""
    latency_ms: float | None
    """Median of three forward passes of one image here and now; None where it was not measured."""
    field: tuple[AxisField, AxisField] | None
    """Receptive field of the output, along rows and columns; None where it does not depend on the image."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: everything but the span of every single cell."""
        plain = asdict(self)
        axes = [{key: value for key, value in axis.items() if key != "spans"} for axis in plain.pop("field") or ()]
        return plain | {"field": dict(zip(("rows", "columns"), axes, strict=False)) or None}


@dataclass(frozen=True)
class Report:
    """What an operation changed, and the proof."""

    operation: str
    model: str
    """The network's class, or its name where it has one."""
    input_shape: tuple[int, int, int]
    exact: bool
    """Whether the same outputs are promised; they have been compared if so."""
    changed: tuple[str, ...]
    """Names of the modules that are others now."""
    differences: tuple[Difference, ...]
    before: Figures
    after: Figures
    notes: tuple[str, ...] = ()
    """What the reader must know, in plain words."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What only this operation has to say, JSON-able."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "operation": self.operation,
            "model": self.model,
            "input_shape": list(self.input_shape),
            "exact": self.exact,
            "changed": list(self.changed),
            "differences": [each.to_dict() for each in self.differences],
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "notes": list(self.notes),
            "details": dict(self.details),
        }

    def __str__(self) -> str:
        size = "×".join(map(str, self.input_shape))
        claim = "the same outputs, proven" if self.exact else "other outputs, measured"
        rows = [("", "before", "after"), *_rows(self.before, self.after)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{self.operation} of {self.model}, images of {size}: {claim}"]
        lines += [f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
        lines += [f"  changed: {', '.join(self.changed) or 'nothing'}"]
        lines += [f"  difference in {each}" for each in self.differences]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True)
class Surgery:
    """The result of an operation; the original is untouched."""

    model: nn.Module
    report: Report


def measure_figures(
    model: nn.Module, input_shape: tuple[int, int, int], *, latency: bool = True, seen: Profile | None = None
) -> Figures:
    """Count, and measure, what a network costs for one image of (C, H, W); the network is only read.

    `seen` is its profile, where there is one already.
    """
    result = seen or profile(model, input_shape)
    return Figures(
        result.totals.params,
        result.totals.macs,
        result.totals.activation_bytes,
        result.totals.peak_activation_bytes,
        measure_latency(model, input_shape) if latency else None,
        result.field,
    )


def measure_latency(model: nn.Module, input_shape: tuple[int, int, int]) -> float:
    """Milliseconds of a forward pass of one image: the median of three, in eval mode, on a copy."""
    copy = deep_copy(model).eval()
    weight = next((p for p in copy.parameters() if p.is_floating_point()), torch.empty(0))
    image = torch.zeros((1, *input_shape), dtype=weight.dtype, device=weight.device)
    times = []
    for _ in range(RUNS):
        with isolated_eval(copy):
            _wait(weight.device)
            start = time.perf_counter()
            copy(image)
            _wait(weight.device)
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_report(
    operation: str,
    original: nn.Module,
    changed: nn.Module,
    input_shape: tuple[int, int, int],
    proof: Proof,
    *,
    names: Sequence[str],
    exact: bool = True,
    latency: bool = True,
    notes: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
    seen: Profile | None = None,
) -> Report:
    """The report of an operation that has been proven or measured; `seen` is the new network's profile, if known."""
    name = getattr(getattr(original, "config", None), "name", None)
    return Report(
        operation=operation,
        model=name if isinstance(name, str) and name else type(original).__name__,
        input_shape=input_shape,
        exact=exact,
        changed=tuple(names),
        differences=proof.differences,
        before=measure_figures(original, input_shape, latency=latency),
        after=measure_figures(changed, input_shape, latency=latency, seen=seen),
        notes=(*notes, *proof.notes),
        details=details or {},
    )


def _rows(before: Figures, after: Figures) -> list[tuple[str, str, str]]:
    """The table of a report, as text."""

    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f} ms"

    rows = [
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("multiply-adds", f"{before.macs:,}", f"{after.macs:,}"),
        ("activations", human_bytes(before.activation_bytes), human_bytes(after.activation_bytes)),
        ("their peak", human_bytes(before.peak_activation_bytes), human_bytes(after.peak_activation_bytes)),
        ("output sees", _field(before), _field(after)),
    ]
    if before.latency_ms is not None or after.latency_ms is not None:
        rows.append(("time, 1 image", ms(before.latency_ms), ms(after.latency_ms)))
    return rows


def _field(measure_figures: Figures) -> str:
    """Rows × columns of the image."""
    if measure_figures.field is None:
        return "-"
    sizes = ["all" if axis.whole and axis.outside is None else str(axis.size) for axis in measure_figures.field]
    return sizes[0] if sizes[0] == sizes[1] else "×".join(sizes)
