"""The rule of each operation: receptive fields of its inputs -> receptive fields of its outputs.

An operation without a rule gets an upper bound: each element of its output may see whatever any element of its inputs
sees. The profile names such operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mlpconv.receptive_field.call import Call
from mlpconv.receptive_field.field import FIRST, LAST, Axis, Field, Grid, compact, join_grids, merge, squash
from mlpconv.receptive_field.moving import move_axis, moves
from mlpconv.receptive_field.sliding import SLIDING

__all__ = ["PRODUCTS", "REDUCTIONS", "Lookup", "fields_after", "ignores_values", "pad_rank", "rule_of"]

Lookup = Callable[[Tensor], "Field | None"]

ALONG = frozenset({"_log_softmax", "_safe_softmax", "_softmax", "sort", "topk"})
"""Operations after which each element sees all elements along one dimension."""
REDUCTIONS = frozenset({
    "all", "amax", "amin", "any", "argmax", "argmin", "linalg_vector_norm", "logsumexp", "max", "mean", "median", "min",
    "norm", "prod", "std", "std_mean", "sum", "var", "var_mean",
})  # fmt: skip
PRODUCTS = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"), "bmm": ("self", "mat2"), "mm": ("self", "mat2")}
POINTWISE = frozenset({"_prelu_kernel", "_to_copy", "dropout", "hardswish", "log_sigmoid_forward", "prelu"})
"""Pointwise operations without PyTorch's tag."""
BLIND = frozenset({"bernoulli", "empty", "fill", "full", "normal", "ones", "rand", "randn", "uniform", "zero", "zeros"})
"""Operations whose result does not depend on input values."""


def fields_after(call: Call, lookup: Lookup) -> tuple[list[Field | None], bool]:
    """Return the field of each output of the call, and whether it is exact (else an upper bound)."""
    known = [field for tensor in call.inputs if (field := lookup(tensor)) is not None]
    if not known or ignores_values(call):
        return [None] * len(call.outputs), True
    axes, rule = range(len(known[0])), rule_of(call)
    if rule is None:
        # Inputs whose elements all see the same pixels stay exact, however they are rearranged.
        exact = call.name == "as_strided" and all(axis.lo.numel() == axis.hi.numel() == 1 for axis in known[0])
        return [tuple(_all_of([f[k] for f in known], out.dim()) for k in axes) for out in call.outputs], exact
    fields = _after_moves(call, lookup, axes) if rule is _moved else [tuple(rule(call, lookup, k) for k in axes)]
    for out in call.outputs[len(fields) :]:  # secondary outputs: the indices of a maximum, the mean of a norm
        same = out.shape == call.outputs[0].shape
        fields.append(fields[0] if same else tuple(_all_of([axis], out.dim()) for axis in fields[0]))
    return [tuple(pad_rank(a, out.dim()) for a in field) for field, out in zip(fields, call.outputs, strict=True)], True


def ignores_values(call: Call) -> bool:
    """Return whether an operation's result does not depend on the values of its inputs."""
    return call.name in BLIND or call.name.endswith("_like") or call.name.startswith("new_")


def rule_of(call: Call) -> Callable[..., Any] | None:
    """Return the rule for an operation; None if there is none."""
    name = call.name
    if name in _RULES:
        return _RULES[name]
    if moves(call):
        hidden = any(index is not None and index.is_meta for index in call.args.get("indices") or ())
        # as_strided may expose elements of the storage that its input does not contain.
        return None if hidden or (name == "as_strided" and not _covers_storage(call.inputs[0])) else _moved
    if name in POINTWISE or torch.Tag.pointwise in call.func.tags:
        return _pointwise
    if name in SLIDING:
        return _slid
    return None


def _covers_storage(tensor: Tensor) -> bool:
    """Return whether a tensor contains every element of its storage."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _all_of(axes: Sequence[Axis], rank: int) -> Axis:
    """Return an axis on which every element sees what any element saw."""
    lo, hi = min(float(axis.lo.min()) for axis in axes), max(float(axis.hi.max()) for axis in axes)
    return Axis(torch.full([1] * rank, lo), torch.full([1] * rank, hi))


def pad_rank(axis: Axis, rank: int) -> Axis:
    """Return the axis with leading dimensions of size 1, up to the tensor's rank."""
    lo, hi = (ends.reshape((*[1] * (rank - ends.dim()), *ends.shape)) for ends in (axis.lo, axis.hi))
    return replace(axis, lo=lo, hi=hi)


def _slid(call: Call, lookup: Lookup, k: int) -> Axis:
    """Convolution, pool, norm: windows slide over the first input; the other inputs are seen completely."""
    source, operands = call.inputs[0], [field for t in call.inputs[1:] if (field := lookup(t)) is not None]
    field = lookup(source)
    if field is None:
        return _all_of([operand[k] for operand in operands], call.outputs[0].dim())
    axis = SLIDING[call.name](call, field[k])
    if not operands:
        return axis
    return merge(
        [axis, _all_of([operand[k] for operand in operands], 1)], call.outputs[0].shape, [call.outputs[0].shape, (1,)]
    )


def _pointwise(call: Call, lookup: Lookup, k: int) -> Axis:
    known = [(tensor.shape, field[k]) for tensor in call.inputs if (field := lookup(tensor)) is not None]
    return merge([axis for _, axis in known], call.outputs[0].shape, [shape for shape, _ in known])


def _copied(call: Call, lookup: Lookup, k: int) -> Axis:
    """`copy_`: the target sees what the source saw, not what it saw before."""
    field = lookup(call["src"])
    if field is None:
        return Axis(torch.tensor(FIRST), torch.tensor(LAST))
    return merge([field[k]], call.outputs[0].shape, [call["src"].shape])


def _product(call: Call, lookup: Lookup, k: int) -> Axis:
    """Matrix product: element (i, j) sees row i of the left and column j of the right factor."""
    parts, shapes = [], []
    left, right = PRODUCTS[call.name]
    for name, dims in ((left, [-1]), (right, [-2]), *([("self", [])] if left != "self" else [])):
        field = lookup(call[name])
        if field is not None:
            parts.append(squash(field[k], dims))
            shapes.append(call[name].shape)
    return merge(parts, call.outputs[0].shape, shapes)


def _reduced(call: Call, lookup: Lookup, k: int) -> Axis:
    """Mean, maximum and other reductions over some dimensions."""
    field = lookup(call.inputs[0])
    if field is None or len(call.inputs) > 1:
        return _pointwise(call, lookup, k)
    rank, dims = call.inputs[0].dim(), call.dims()
    axis = squash(field[k], dims)
    if call.outputs[0].dim() == rank:
        return axis
    keep = [dim for dim in range(-rank, 0) if dim not in dims]
    grid = axis.grid and replace(axis.grid, dim=keep.index(axis.grid.dim) - len(keep))
    return Axis(axis.lo.squeeze(dims), axis.hi.squeeze(dims), grid)


def _along(call: Call, lookup: Lookup, k: int) -> Axis:
    """Softmax, sort."""
    field = lookup(call.inputs[0])
    return squash(field[k], call.dims()) if field is not None else _pointwise(call, lookup, k)


def _gated(call: Call, lookup: Lookup, k: int) -> Axis:
    """`glu`: the first half along a dimension, gated by the second."""
    field, (dim,) = lookup(call.inputs[0]), call.dims()
    if field is None:
        return _pointwise(call, lookup, k)
    (axis, shape), halves = (field[k], call.outputs[0].shape), []
    for half in (0, 1):
        parts = [v if v.shape[dim] == 1 else v.chunk(2, dim)[half] for v in (axis.lo, axis.hi)]
        grid = axis.grid if axis.grid is not None and axis.grid.dim != dim else None
        halves.append(Axis(parts[0], parts[1], grid))
    return merge(halves, shape, [shape, shape])


def _joined(call: Call, lookup: Lookup, k: int) -> Axis:
    """`cat` and `stack`: concatenate the first and last pixels in the same way."""
    rank = call.outputs[0].dim()
    dim = call["dim"] - rank if call["dim"] >= 0 else call["dim"]
    stacks = call.name == "stack"
    tensors = [tensor for tensor in call["tensors"] if tensor.dim() == rank - stacks]
    fields = [lookup(tensor) for tensor in tensors]

    def part(which: Callable[[Axis], Tensor], nothing: float) -> Tensor:
        pieces = [which(f[k]) if f is not None else torch.full([1] * (rank - stacks), nothing) for f in fields]
        pieces = [piece.unsqueeze(dim) for piece in pieces] if stacks else pieces
        sizes = [1 if stacks else tensor.shape[dim] for tensor in tensors]
        beside = [[*piece.shape[:dim], 1, *piece.shape[rank + dim + 1 :]] for piece in pieces]
        wide = [max(sizes) for sizes in zip(*beside, strict=True)]
        for index, size in enumerate(sizes):
            wide[dim] = size
            pieces[index] = pieces[index].expand(wide)
        return compact(torch.cat(pieces, dim))

    grids: list[Grid | None] = []
    for field in fields:
        grid = field[k].grid if field is not None else None
        if grid is not None and stacks and grid.dim <= dim:
            grid = replace(grid, dim=grid.dim - 1)
        grids.append(grid if grid is None or stacks or grid.dim != dim else None)
    return Axis(part(lambda a: a.lo, FIRST), part(lambda a: a.hi, LAST), join_grids(grids))


def _moved(call: Call, lookup: Lookup, k: int) -> list[Axis]:
    """Return one axis of each output of an operation that rearranges elements."""
    field = lookup(call.inputs[0])
    return [_pointwise(call, lookup, k)] * len(call.outputs) if field is None else move_axis(call, field[k])


def _after_moves(call: Call, lookup: Lookup, axes: Sequence[int]) -> list[Field]:
    """Return the field of each output of an operation that rearranges elements."""
    parts = [_moved(call, lookup, k) for k in axes]
    return [
        _rows_and_columns(field, out.shape) for field, out in zip(zip(*parts, strict=True), call.outputs, strict=True)
    ]


def _rows_and_columns(field: Field, shape: Sequence[int]) -> Field:
    """Drop grids that share a dimension with anything but the other axis of the image."""
    folded = [axis.grid for axis in field if axis.grid is not None and axis.grid.cells is not None]
    if not folded:
        return field
    together = len({grid.dim for grid in folded}) == 1 and len(folded) == len(field)
    if together and math.prod(grid.cells or 1 for grid in folded) == shape[folded[0].dim]:
        return field
    return tuple(replace(axis, grid=None) if axis.grid in folded else axis for axis in field)


_RULES: dict[str, Callable[..., Axis]] = {
    "cat": _joined,
    "copy": _copied,
    "glu": _gated,
    "stack": _joined,
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(REDUCTIONS, _reduced),
    **dict.fromkeys(ALONG, _along),
}
