"""Trace an image through a forward pass and compute the receptive field of each tensor.

A dispatch mode intercepts every ATen operation, whether it comes from a module, a function or an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from mlpconv.receptive_field.call import Call, bind
from mlpconv.receptive_field.field import FIRST, LAST, Axis, Field, Grid, compact, image_axis, join_grids
from mlpconv.receptive_field.moving import pad_circular
from mlpconv.receptive_field.rules import fields_after

__all__ = ["Follower", "field_of"]

PADS = (F.pad, torch._C._nn.pad)


class _CircularPads(TorchFunctionMode):
    """Intercept circular padding, which a dispatch mode only sees as copies of slices."""

    def __init__(self, follower: Follower) -> None:
        super().__init__()
        self.follower = follower

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function; after circular padding, continue the grid beyond the border."""
        result = func(*args, **(kwargs or {}))
        if func in PADS:
            source, pad, mode = _pad_arguments(*args, **(kwargs or {}))
            fields = self.follower.fields
            unpadded, padded = fields.get(source), fields.get(result)
            if mode == "circular" and unpadded is not None and padded is not None:
                self.follower.amend(result, pad_circular(padded, unpadded, source.shape, pad))
        return result


def _pad_arguments(
    input: Tensor,  # noqa: A002  (these names are those of F.pad)
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,  # noqa: ARG001
) -> tuple[Tensor, Sequence[int], str]:
    """Return the input, padding and mode of a call of `F.pad`."""
    return input, pad, mode


class Follower(TorchDispatchMode):
    """Record the field of every tensor computed from an image (N, C, H, W) while active.

    `run(operation, args, kwargs)` runs each operation (default: call it).
    """

    def __init__(self, run: Callable[[OpOverload, Any, Any], Any] = lambda func, a, kw: func(*a, **kw)) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run = run
        self.fields: Any = WeakTensorKeyDictionary()
        self.bounds: set[str] = set()
        self.pads = _CircularPads(self)

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        self.pads.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        self.pads.__exit__(*error)  # type: ignore[no-untyped-call]
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: marking a method for PyTorch's compiler would import it, which is slower than the trace."""
        return False

    def start(self, image: Tensor) -> None:
        """Track this image: each pixel sees itself."""
        self.fields[image] = tuple(image_axis(4, dim, image.shape[dim]) for dim in (-2, -1))

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation and record the fields of its outputs."""
        result = self.run(func, args, kwargs or {})
        call = bind(func, args, kwargs or {}, result)
        if call.outputs:
            self.see(call)
        return result

    def fields_of(self, call: Call) -> tuple[list[Field | None], bool]:
        """Return the field of each output of an operation, and whether it is exact."""
        return fields_after(call, self.fields.get)

    def see(self, call: Call) -> list[Field | None]:
        """Record the fields of an operation's outputs; add its name to `bounds` if they are upper bounds."""
        fields, exact = self.fields_of(call)
        if not exact:
            self.bounds.add(call.name)
        for tensor, field in zip(call.outputs, fields, strict=True):
            if call.in_place:
                self._write_through(tensor, field)
            self.fields[tensor] = field
        return fields

    def amend(self, tensor: Tensor, field: Field) -> None:
        """Set the field of the result of several operations."""
        self.fields[tensor] = field

    def _write_through(self, written: Tensor, field: Field | None) -> None:
        """Update the fields of all tensors that share storage with one written in place."""
        key = written.untyped_storage()._cdata
        aliases = [t for t in list(self.fields) if t is not written and t.untyped_storage()._cdata == key]
        for alias in aliases:
            if alias.dtype == written.dtype and (field is not None or self.fields[alias] is not None):
                self.fields[alias] = _overwritten(alias, self.fields[alias], written, field)


def field_of(image: Tensor, function: Callable[[Tensor], Tensor]) -> Field | None:
    """Return the field of `function(image)`, computed on an image (N, C, H, W); None if it does not depend on it."""
    follower = Follower()
    follower.start(image)
    with torch.inference_mode(False), torch.no_grad(), follower:  # inference mode hides in-place views
        result = function(image)
    field: Field | None = follower.fields.get(result)
    return field


def _overwritten(tensor: Tensor, old: Field | None, written: Tensor, new: Field | None) -> Field:
    """Return the field of a tensor after an alias of it was written."""
    length = written.untyped_storage().nbytes() // written.element_size()
    blank = Axis(torch.tensor(FIRST), torch.tensor(LAST))
    axes = []
    for k in range(len(new or old or ())):
        before, after = old[k] if old else blank, new[k] if new else blank
        parts = []
        for was, now, nothing in ((before.lo, after.lo, FIRST), (before.hi, after.hi, LAST)):
            flat = torch.full((length,), nothing)
            own = flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            own.copy_(was.expand(tensor.shape))
            flat.as_strided(written.shape, written.stride(), written.storage_offset()).copy_(now.expand(written.shape))
            parts.append(compact(own.clone()))
        grid = _grid_after_write(tensor, before.grid, written, after.grid, first=old is None)
        axes.append(Axis(parts[0], parts[1], grid))
    return tuple(axes)


def _grid_after_write(
    tensor: Tensor, own: Grid | None, written: Tensor, new: Grid | None, *, first: bool
) -> Grid | None:
    """Return the grid of a tensor after a write into a slice of it; `first` if it did not depend on the image."""
    placed = _placed(tensor, written, new)
    if placed is None:
        return own
    if tensor.shape[placed.dim] == written.shape[placed.dim]:
        return join_grids([grid for grid in (own, placed) if grid is not None])
    if own is None:
        return placed if first else None
    return own if (own.dim, own.jump, own.start) == (placed.dim, placed.jump, placed.start) else None


def _placed(tensor: Tensor, written: Tensor, grid: Grid | None) -> Grid | None:
    """Return the grid of a slice, counted from the tensor's first element; None if it is no slice along the grid."""
    if grid is None or -grid.dim > tensor.dim() or tensor.stride(grid.dim) != written.stride(grid.dim):
        return None
    if tensor.shape[grid.dim] == written.shape[grid.dim]:
        return grid
    if grid.cells is not None or tensor.dim() != written.dim() or not tensor.is_contiguous():
        return None
    offset = written.storage_offset() - tensor.storage_offset()
    skipped = offset // tensor.stride(grid.dim) % tensor.shape[grid.dim]
    return replace(grid, start=grid.start - skipped * grid.jump)
