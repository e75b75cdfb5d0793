"""What each operation does to the field of what goes into it.

An operation not known here gets the safe answer: each element of its result may have seen what any element of its
inputs saw. Such answers are upper bounds, and the profile names the operations.
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
from mlpconv.receptive_field.moving import moved, moves
from mlpconv.receptive_field.sliding import SLIDING

__all__ = ["PRODUCTS", "REDUCTIONS", "Lookup", "fields_after", "makes_anew", "ranked", "rule_of"]

Lookup = Callable[[Tensor], "Field | None"]

ALONG = frozenset({"_log_softmax", "_safe_softmax", "_softmax", "sort", "topk"})
"""Operations after which each element has seen all that lie beside it along one dimension."""
REDUCTIONS = frozenset({
    "all", "amax", "amin", "any", "argmax", "argmin", "linalg_vector_norm", "logsumexp", "max", "mean", "median", "min",
    "norm", "prod", "std", "std_mean", "sum", "var", "var_mean",
})  # fmt: skip
PRODUCTS = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"), "bmm": ("self", "mat2"), "mm": ("self", "mat2")}
POINTWISE = frozenset({"_prelu_kernel", "_to_copy", "dropout", "hardswish", "log_sigmoid_forward", "prelu"})
"""Pointwise operations that PyTorch does not tag as such."""
BLIND = frozenset({"bernoulli", "empty", "fill", "full", "normal", "ones", "rand", "randn", "uniform", "zero", "zeros"})
"""Operations whose result does not depend on the values that go in."""


def fields_after(call: Call, lookup: Lookup) -> tuple[list[Field | None], bool]:
    """The field of each of the call's outputs, and whether it is exact (an upper bound where not)."""
    known = [field for tensor in call.inputs if (field := lookup(tensor)) is not None]
    if not known or makes_anew(call):
        return [None] * len(call.outputs), True
    axes, rule = range(len(known[0])), rule_of(call)
    if rule is None:
        # Wherever its one element of a kind is put, it has seen the same.
        exact = call.name == "as_strided" and all(axis.lo.numel() == axis.hi.numel() == 1 for axis in known[0])
        return [tuple(_all_of([f[k] for f in known], out.dim()) for k in axes) for out in call.outputs], exact
    made = _after_moves(call, lookup, axes) if rule is _moved else [tuple(rule(call, lookup, k) for k in axes)]
    for out in call.outputs[len(made) :]:  # an index beside a maximum, a mean beside what it normalised
        made.append(made[0] if out.shape == call.outputs[0].shape else tuple(_all_of([a], out.dim()) for a in made[0]))
    return [tuple(ranked(a, out.dim()) for a in field) for field, out in zip(made, call.outputs, strict=True)], True


def makes_anew(call: Call) -> bool:
    """Whether an operation makes a tensor that does not depend on the values that go in."""
    return call.name in BLIND or call.name.endswith("_like") or call.name.startswith("new_")


def rule_of(call: Call) -> Callable[..., Any] | None:
    """The rule for an operation; None where it is not known."""
    name = call.name
    if name in _RULES:
        return _RULES[name]
    if moves(call):
        hidden = any(index is not None and index.is_meta for index in call.args.get("indices") or ())
        # What a tensor shows of its storage may be less than what is then shown of it.
        return None if hidden or (name == "as_strided" and not _shows_all(call.inputs[0])) else _moved
    if name in POINTWISE or torch.Tag.pointwise in call.func.tags:
        return _pointwise
    if name in SLIDING:
        return _slid
    return None


def _shows_all(tensor: Tensor) -> bool:
    """Whether a tensor has an element for each of its storage."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _all_of(axes: Sequence[Axis], rank: int) -> Axis:
    """Each element has seen all that any element saw."""
    lo, hi = min(float(axis.lo.min()) for axis in axes), max(float(axis.hi.max()) for axis in axes)
    return Axis(torch.full([1] * rank, lo), torch.full([1] * rank, hi))


def ranked(axis: Axis, rank: int) -> Axis:
    """The same with as many dimensions as the tensor has."""
    lo, hi = (ends.reshape((*[1] * (rank - ends.dim()), *ends.shape)) for ends in (axis.lo, axis.hi))
    return replace(axis, lo=lo, hi=hi)


def _slid(call: Call, lookup: Lookup, k: int) -> Axis:
    """A convolution, a pool, a norm, ...: one input has neighbours; where others have a field, all of it is seen."""
    source, others = call.inputs[0], [field for t in call.inputs[1:] if (field := lookup(t)) is not None]
    field = lookup(source)
    if field is None:
        return _all_of([other[k] for other in others], call.outputs[0].dim())
    axis = SLIDING[call.name](call, field[k])
    if not others:
        return axis
    return merge([axis, _all_of([o[k] for o in others], 1)], call.outputs[0].shape, [call.outputs[0].shape, (1,)])


def _pointwise(call: Call, lookup: Lookup, k: int) -> Axis:
    known = [(tensor.shape, field[k]) for tensor in call.inputs if (field := lookup(tensor)) is not None]
    return merge([axis for _, axis in known], call.outputs[0].shape, [shape for shape, _ in known])


def _copied(call: Call, lookup: Lookup, k: int) -> Axis:
    """`copy_`: the target has seen what the source saw, and no more what it saw itself."""
    field = lookup(call["src"])
    if field is None:
        return Axis(torch.tensor(FIRST), torch.tensor(LAST))
    return merge([field[k]], call.outputs[0].shape, [call["src"].shape])


def _product(call: Call, lookup: Lookup, k: int) -> Axis:
    """A matrix product: element (i, j) has seen row i of the left and column j of the right."""
    parts, shapes = [], []
    left, right = PRODUCTS[call.name]
    for name, dims in ((left, [-1]), (right, [-2]), *([("self", [])] if left != "self" else [])):
        field = lookup(call[name])
        if field is not None:
            parts.append(squash(field[k], dims))
            shapes.append(call[name].shape)
    return merge(parts, call.outputs[0].shape, shapes)


def _reduced(call: Call, lookup: Lookup, k: int) -> Axis:
    """A mean, a maximum, ... over some dimensions."""
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
    """A softmax, a sort."""
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
    """`cat` and `stack`: the same is done to what has been seen, in the dimension that grows."""
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
    """For each output of an operation that moves elements: the same is done to what they have seen."""
    field = lookup(call.inputs[0])
    return [_pointwise(call, lookup, k)] * len(call.outputs) if field is None else moved(call, field[k])


def _after_moves(call: Call, lookup: Lookup, axes: Sequence[int]) -> list[Field]:
    """The field of each output of an operation that moves elements."""
    parts = [_moved(call, lookup, k) for k in axes]
    return [
        _rows_and_columns(field, out.shape) for field, out in zip(zip(*parts, strict=True), call.outputs, strict=True)
    ]


def _rows_and_columns(field: Field, shape: Sequence[int]) -> Field:
    """The same, without grids that share a dimension with something else than the other axis of the image."""
    folded = [axis.grid for axis in field if axis.grid is not None and axis.grid.cells is not None]
    if not folded:
        return field
    one = len({grid.dim for grid in folded}) == 1 and len(folded) == len(field)
    if one and math.prod(grid.cells or 1 for grid in folded) == shape[folded[0].dim]:
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
