"""The result of an operation: the new network and its report."""

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
from mlpconv.surgery.proof.compare import Difference, Proof, isolated_eval
from mlpconv.surgery.tracing.accept import deep_copy

__all__ = ["Figures", "Report", "Surgery", "make_report", "measure_figures"]

RUNS = 3


@dataclass(frozen=True)
class Figures:
    """Cost of a network for one image, and the receptive field of its output."""

    parameters: int
    macs: int
    """Multiply-adds."""
    activation_bytes: int
    """Sum over all intermediate results."""
    peak_activation_bytes: int
    """Maximum held in memory at the same time."""
    latency_ms: float | None
    """Median of three forward passes of one image on this machine; None if not measured."""
    field: tuple[AxisField, AxisField] | None
    """Receptive field of the output along rows and columns; None if the output does not depend on the image."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict without the spans of individual cells."""
        values = asdict(self)
        axes = [{key: value for key, value in axis.items() if key != "spans"} for axis in values.pop("field") or ()]
        return values | {"field": dict(zip(("rows", "columns"), axes, strict=False)) or None}


@dataclass(frozen=True)
class Report:
    """What an operation changed, with the numerical comparison of both networks."""

    operation: str
    model: str
    """The network's name if it has one, otherwise its class."""
    input_shape: tuple[int, int, int]
    exact: bool
    """Whether the operation preserves the outputs; if so, they were compared."""
    changed: tuple[str, ...]
    """Names of the replaced modules."""
    differences: tuple[Difference, ...]
    before: Figures
    after: Figures
    notes: tuple[str, ...] = ()
    """Remarks for the reader, one sentence each."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Operation-specific values, JSON-compatible."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return {
            "operation": self.operation,
            "model": self.model,
            "input_shape": list(self.input_shape),
            "exact": self.exact,
            "changed": list(self.changed),
            "differences": [difference.to_dict() for difference in self.differences],
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
        lines += [f"  difference in {difference}" for difference in self.differences]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True)
class Surgery:
    """The result of an operation; the original network is unchanged."""

    model: nn.Module
    report: Report


def measure_figures(
    model: nn.Module, input_shape: tuple[int, int, int], *, latency: bool = True, profiled: Profile | None = None
) -> Figures:
    """Return the cost of a network for one image (C, H, W), without modifying the network.

    `profiled` is its profile, if it is already known.
    """
    result = profiled or profile(model, input_shape)
    return Figures(
        result.totals.params,
        result.totals.macs,
        result.totals.activation_bytes,
        result.totals.peak_activation_bytes,
        measure_latency(model, input_shape) if latency else None,
        result.field,
    )


def measure_latency(model: nn.Module, input_shape: tuple[int, int, int]) -> float:
    """Return the latency of one image in ms: the median of three passes of a copy in eval mode."""
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
    profiled: Profile | None = None,
) -> Report:
    """Return the report of an operation; `profiled` is the profile of the new network, if it is already known."""
    name = getattr(getattr(original, "config", None), "name", None)
    return Report(
        operation=operation,
        model=name if isinstance(name, str) and name else type(original).__name__,
        input_shape=input_shape,
        exact=exact,
        changed=tuple(names),
        differences=proof.differences,
        before=measure_figures(original, input_shape, latency=latency),
        after=measure_figures(changed, input_shape, latency=latency, profiled=profiled),
        notes=(*notes, *proof.notes),
        details=details or {},
    )


def _rows(before: Figures, after: Figures) -> list[tuple[str, str, str]]:
    """Return the rows of the report's table as text."""

    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f} ms"

    rows = [
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("multiply-adds", f"{before.macs:,}", f"{after.macs:,}"),
        ("activations", human_bytes(before.activation_bytes), human_bytes(after.activation_bytes)),
        ("peak activations", human_bytes(before.peak_activation_bytes), human_bytes(after.peak_activation_bytes)),
        ("receptive field", _field(before), _field(after)),
    ]
    if before.latency_ms is not None or after.latency_ms is not None:
        rows.append(("latency, 1 image", ms(before.latency_ms), ms(after.latency_ms)))
    return rows


def _field(figures: Figures) -> str:
    """Return the receptive field as rows × columns in pixels."""
    if figures.field is None:
        return "-"
    sizes = ["all" if axis.whole and axis.outside is None else str(axis.size) for axis in figures.field]
    return sizes[0] if sizes[0] == sizes[1] else "×".join(sizes)
