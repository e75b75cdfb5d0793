"""Following an image through whatever is done to it: what each tensor on the way sees of its pixels.

A dispatch mode sees each ATen operation, so a module, a function and an operator are all the same.
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
from mlpconv.receptive_field.moving import circular
from mlpconv.receptive_field.rules import fields_after

__all__ = ["Follower", "field_of"]

PADS = (F.pad, torch._C._nn.pad)


class _CircularPads(TorchFunctionMode):
    """Sees padding that goes round, which is many copies of parts to a dispatch mode."""

    def __init__(self, follower: Follower) -> None:
        super().__init__()
        self.follower = follower

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function, and give the cells that it pads with their place over the border."""
        result = func(*args, **(kwargs or {}))
        if func in PADS:
            source, pad, mode = _pad_arguments(*args, **(kwargs or {}))
            fields = self.follower.fields
            before, made = fields.get(source), fields.get(result)
            if mode == "circular" and before is not None and made is not None:
                self.follower.amend(result, circular(made, before, source.shape, pad))
        return result


def _pad_arguments(
    input: Tensor,  # noqa: A002  (these names are those of F.pad)
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,  # noqa: ARG001
) -> tuple[Tensor, Sequence[int], str]:
    """Those that matter, of a call of `F.pad`."""
    return input, pad, mode


class Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows the field of every tensor that is made from an image (N, C, H, W) while it is at work."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
        """No: to mark a method for PyTorch's compiler would import it, which takes longer than to follow an image."""
        return False

    def start(self, image: Tensor) -> None:
        """Follow this image: each pixel sees itself."""
        self.fields[image] = tuple(image_axis(4, dim, image.shape[dim]) for dim in (-2, -1))

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation, and note what its results see."""
        result = self.compute(func, args, kwargs or {})
        call = bind(func, args, kwargs or {}, result)
        if call.outputs:
            self.see(call)
        return result

    def compute(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one operation."""
        return func(*args, **kwargs)

    def fields_of(self, call: Call) -> tuple[list[Field | None], bool]:
        """The field of each output of an operation, and whether it is exact."""
        return fields_after(call, self.fields.get)

    def see(self, call: Call) -> list[Field | None]:
        """Note what the outputs of an operation see; where that is an upper bound, its name goes to `bounds`."""
        fields, exact = self.fields_of(call)
        if not exact:
            self.bounds.add(call.name)
        for tensor, field in zip(call.outputs, fields, strict=True):
            if call.in_place:
                self._write_through(tensor, field)
            self.fields[tensor] = field
        return fields

    def amend(self, tensor: Tensor, field: Field) -> None:
        """Note what the result of several operations sees, where the last of them did not tell."""
        self.fields[tensor] = field

    def _write_through(self, written: Tensor, field: Field | None) -> None:
        """What was written in place is seen by every other tensor on the same storage."""
        key = written.untyped_storage()._cdata
        others = [t for t in list(self.fields) if t is not written and t.untyped_storage()._cdata == key]
        for other in others:
            if other.dtype == written.dtype and (field is not None or self.fields[other] is not None):
                self.fields[other] = _overwritten(other, self.fields[other], written, field)


def field_of(image: Tensor, made_from: Callable[[Tensor], Tensor]) -> Field | None:
    """What a tensor sees of the image (N, C, H, W) that it is really computed from; None where that is nothing."""
    follower = Follower()
    follower.start(image)
    with torch.inference_mode(False), torch.no_grad(), follower:  # inference mode would hide what an operation is of
        made = made_from(image)
    field: Field | None = follower.fields.get(made)
    return field


def _overwritten(tensor: Tensor, old: Field | None, written: Tensor, new: Field | None) -> Field:
    """The field of a tensor after another one on its storage was written."""
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
        axes.append(
            Axis(parts[0], parts[1], _grid_of_both(tensor, before.grid, written, after.grid, first=old is None))
        )
    return tuple(axes)


def _grid_of_both(tensor: Tensor, own: Grid | None, written: Tensor, other: Grid | None, *, first: bool) -> Grid | None:
    """The grid of a tensor of which a part was written; `first` where nothing of the image was in it before."""
    placed = _placed(tensor, written, other)
    if placed is None:
        return own
    if tensor.shape[placed.dim] == written.shape[placed.dim]:
        return join_grids([grid for grid in (own, placed) if grid is not None])
    if own is None:
        return placed if first else None
    return own if (own.dim, own.jump, own.start) == (placed.dim, placed.jump, placed.start) else None


def _placed(tensor: Tensor, written: Tensor, grid: Grid | None) -> Grid | None:
    """The grid of a part of a tensor, counted from the tensor's first element; None where it lies otherwise in it."""
    if grid is None or -grid.dim > tensor.dim() or tensor.stride(grid.dim) != written.stride(grid.dim):
        return None
    if tensor.shape[grid.dim] == written.shape[grid.dim]:
        return grid
    if grid.cells is not None or tensor.dim() != written.dim() or not tensor.is_contiguous():
        return None
    offset = written.storage_offset() - tensor.storage_offset()
    skipped = offset // tensor.stride(grid.dim) % tensor.shape[grid.dim]
    return replace(grid, start=grid.start - skipped * grid.jump)
