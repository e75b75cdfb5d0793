"""Profile a network: one row per layer, from the operations of a traced forward pass, and the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from torch import nn

from mlpconv.analysis.cost import KINDS
from mlpconv.analysis.input_shape import check_input_shape
from mlpconv.analysis.result import AxisField, LayerProfile, Profile, Totals, axis_field
from mlpconv.analysis.trace import Trace, TracedOp, trace
from mlpconv.errors import UsageError
from mlpconv.receptive_field.field import Field

__all__ = ["profile"]


def profile(model: nn.Module, input_shape: tuple[int, int, int], *, batch: int = 1) -> Profile:
    """Return the cost and receptive field of every layer of a model, for images of (C, H, W).

    The profile holds parameters, multiply-adds, activation bytes, their peak at inference, and the exact receptive
    field of each layer of any graph. Operations and bytes are those of `batch` images. The forward pass runs in eval
    mode on a copy on the meta device; the model itself is only read.
    Raises UsageError for an invalid size, and for a model that cannot be traced, with the module's name.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"profile got a {type(model).__name__}; pass a torch.nn.Module.")
    shape = check_input_shape(input_shape)
    if type(batch) is not int or batch < 1:
        raise UsageError(f"batch is {batch!r}; pass an integer of at least 1.")
    model = getattr(model, "_orig_mod", model)  # the module that torch.compile wraps
    traced = trace(model, shape)
    rows = tuple(_rows(traced, shape, batch))
    totals = _totals(model, rows, traced.peak_bytes * batch)
    name = getattr(getattr(model, "config", None), "name", None)
    return Profile(
        model=name if isinstance(name, str) and name else type(model).__name__,
        input_shape=shape,
        batch=batch,
        rows=rows,
        field=_axis_fields(traced.output, traced.output_shape, shape),
        totals=totals,
        notes=tuple(_notes(traced, rows, totals)),
    )


def _axis_fields(
    field: Field | None, shape: tuple[int, ...], image: tuple[int, int, int]
) -> tuple[AxisField, AxisField] | None:
    """Return the receptive field of a tensor of this shape, along rows and columns of the image."""
    return None if field is None else (axis_field(field[0], shape, image[1]), axis_field(field[1], shape, image[2]))


def _rows(traced: Trace, image: tuple[int, int, int], batch: int) -> Iterator[LayerProfile]:
    """Yield one row per call of a module without children, and one per operation outside such modules."""
    calls: Counter[str] = Counter()
    for place, group in groupby(traced.steps, key=lambda step: step.place):
        name, module = traced.places[place]
        steps = list(group)
        is_layer = not any(True for _ in module.children()) and sum(step.cost.macs > 0 for step in steps) <= 1
        for ops in [steps] if is_layer else [[step] for step in steps]:
            if not any(_has_cost(step) for step in ops):
                continue
            label = name or type(module).__name__ if is_layer else ".".join(filter(None, (name, ops[0].operation)))
            calls[label] += 1
            label = f"{label} ({calls[label]})" if calls[label] > 1 else label
            yield _row(label, type(module) if is_layer else None, ops, image, batch)


def _has_cost(step: TracedOp) -> bool:
    """Return whether a step computes, allocates memory or reads parameters."""
    cost = step.cost
    return bool(cost.macs or cost.pool_ops or cost.other_ops or step.new_bytes or step.params or not cost.counted)


def _row(
    label: str, module: type | None, steps: Sequence[TracedOp], image: tuple[int, int, int], batch: int
) -> LayerProfile:
    kind = min((step.cost.kind for step in steps), key=KINDS.index)
    if module is not None and "norm" in module.__name__.lower() and kind not in KINDS[:5]:
        kind = "norm"
    result = next((step for step in reversed(steps) if step.field is not None), steps[-1])
    times = [(step.cost, batch if step.field is not None else 1) for step in steps]
    macs = sum(cost.macs * n for cost, n in times)
    moved = sum(cost.traffic * n + cost.weight_bytes for cost, n in times)
    allocated = next(((step.new_bytes, n) for step, (_, n) in zip(reversed(steps), reversed(times), strict=True)
                 if step.new_bytes), (0, 1))  # fmt: skip
    return LayerProfile(
        name=label,
        module=module.__name__ if module is not None else steps[0].operation,
        kind=kind,
        shape=result.shape[1:] if result.shape[:1] == (1,) else result.shape,
        params=sum(step.params for step in steps),
        macs=macs,
        bias_adds=sum(cost.bias_adds * n for cost, n in times),
        pool_ops=sum(cost.pool_ops * n for cost, n in times),
        other_ops=sum(cost.other_ops * n for cost, n in times),
        activation_bytes=allocated[0] * allocated[1],
        intensity=macs / moved if macs and moved else None,
        field=_axis_fields(result.field, result.shape, image),
        uncounted=tuple(sorted({step.operation for step in steps if not step.cost.counted})),
    )


def _totals(model: nn.Module, rows: Sequence[LayerProfile], peak: int) -> Totals:
    params = sum(parameter.numel() for parameter in model.parameters())
    by_kind = {}
    for kind in KINDS:
        of_kind = [row for row in rows if row.kind == kind]
        if of_kind:
            sums = {key: sum(getattr(row, key) for row in of_kind) for key in ("params", "macs", "activation_bytes")}
            by_kind[kind] = {"layers": len(of_kind)} | sums
    macs, activations = sum(row.macs for row in rows), sum(row.activation_bytes for row in rows)
    moved = sum(row.macs / row.intensity for row in rows if row.intensity)
    pointwise = by_kind.get("1x1", {"params": 0, "macs": 0, "activation_bytes": 0})
    return Totals(
        params=params,
        unused_params=params - sum(row.params for row in rows),
        macs=macs,
        bias_adds=sum(row.bias_adds for row in rows),
        pool_ops=sum(row.pool_ops for row in rows),
        other_ops=sum(row.other_ops for row in rows),
        activation_bytes=activations,
        peak_activation_bytes=peak,
        intensity=macs / moved if moved else None,
        params_share_1x1=pointwise["params"] / params if params else 0.0,
        macs_share_1x1=pointwise["macs"] / macs if macs else 0.0,
        activation_share_1x1=pointwise["activation_bytes"] / activations if activations else 0.0,
        by_kind=by_kind,
    )


def _notes(traced: Trace, rows: Sequence[LayerProfile], totals: Totals) -> Iterator[str]:
    uncounted = sorted({name for row in rows for name in row.uncounted})
    if uncounted:
        yield f"Not counted: {', '.join(uncounted)}. The cost of these operations is unknown, so the totals exclude it."
    if totals.unused_params:
        yield f"{totals.unused_params:,} parameters are unused in this forward pass (auxiliary heads, for example)."
    if traced.bounds:
        yield f"Receptive fields after these operations are upper bounds: {', '.join(traced.bounds)}."
