"""One forward pass without numbers: every operation is seen, with its cost, its memory and what it sees of the image.

The pass runs on the meta device, on a copy of the model whose parameters have shapes and no storage. A dispatch mode
sees each ATen operation, so a module, a function and an operator are all the same; hooks on the copy say which module
is at work.
"""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from mlpconv.analysis.cost import Cost, cost_of, size_in_bytes
from mlpconv.analysis.meta import batches_taken, isolated, on_meta, shape_only, uncompiled
from mlpconv.errors import MlpconvError, UsageError, first_line
from mlpconv.receptive_field.call import Call, bind
from mlpconv.receptive_field.field import Field
from mlpconv.receptive_field.following import Follower

__all__ = ["Trace", "TracedOp", "trace", "without_storage"]

# PyTorch loads its shape rules at the first operation on the meta device: a second or two, paid here, at import.
torch.relu(torch.empty(0, device="meta"))

CONSTANT = 1 << 20
"""Elements up to which a tensor that is no parameter keeps its values: tables of indices."""


@dataclass(frozen=True)
class TracedOp:
    """One operation of the forward pass."""

    operation: str
    place: int
    """Which call of a module it belongs to."""
    cost: Cost
    shape: tuple[int, ...]
    params: int
    """Parameters that it is the first to read."""
    new_bytes: int
    """Bytes of its result; 0 for a view or an operation in place."""
    field: Field | None
    """None where the result does not depend on the image."""


@dataclass(frozen=True)
class Trace:
    """A whole forward pass, on one image."""

    steps: tuple[TracedOp, ...]
    places: tuple[tuple[str, nn.Module], ...]
    """Each call of a module: its name and the module (of the copy)."""
    peak_bytes: int
    """Most bytes of activations alive at once, the image included."""
    bounds: tuple[str, ...]
    """Operations whose field is an upper bound."""
    output: Field | None
    """The field of what the model returns, or of the first tensor of it."""
    output_shape: tuple[int, ...]


class _Recorder(Follower):  # type: ignore[no-untyped-call]
    """Sees every operation between its parts: fields, costs, memory."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.steps: list[TracedOp] = []
        self.places: list[tuple[str, nn.Module]] = [("", model)]
        self.stack = [0]
        self.failed: int | None = None
        """The place that an exception came from, once there is one."""
        self.handled = sys.exc_info()[1]
        self.live: dict[int, int] = {}
        self.peak = 0
        self.unread = {p.untyped_storage()._cdata: p.numel() for p in model.parameters()}

    def watch(self, model: nn.Module) -> None:
        """Follow which module of the (copied) model is at work."""

        def enter(name: str, module: nn.Module) -> None:
            self.failed = None
            self.stack.append(len(self.places))
            self.places.append((name, module))

        def leave(*_: object) -> None:
            place = self.stack.pop()
            if self.failed is None and sys.exc_info()[1] is not self.handled:
                self.failed = place

        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda entered, _, name=name: enter(name, entered))
            module.register_forward_hook(leave, always_call=True)

    def hold(self, tensor: Tensor) -> int:
        """Count a tensor's storage until it is freed; its bytes, or 0 where it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.live:
            return 0
        self.live[key] = size = size_in_bytes(tensor)
        weakref.finalize(storage, self.live.pop, key)
        self.peak = max(self.peak, sum(self.live.values()))
        return size

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation and write down what it did."""
        meta_args, meta_kwargs = on_meta(args, kwargs or {})
        result = func(*meta_args, **meta_kwargs)
        call = bind(func, args, kwargs or {}, result)
        if call.outputs and call.outputs[0].is_meta:
            self._record(call)
        return result

    def amend(self, tensor: Tensor, field: Field) -> None:
        """Note what the result of several operations sees, and that the last of them made it."""
        super().amend(tensor, field)
        self.steps[-1] = replace(self.steps[-1], shape=tuple(tensor.shape), field=field)

    def _record(self, call: Call) -> None:
        tracked = [tensor for tensor in call.inputs if self.fields.get(tensor) is not None]
        fields = self.see(call)
        view = call.func.is_view or call.in_place
        self.steps.append(
            TracedOp(
                call.name,
                self.stack[-1],
                cost_of(call, tracked),
                tuple(call.outputs[0].shape),
                0 if call.func.is_view else self._first_read(call),
                0 if view else self.hold(call.outputs[0]),
                fields[0],
            )
        )

    def _first_read(self, call: Call) -> int:
        return sum(self.unread.pop(tensor.untyped_storage()._cdata, 0) for tensor in call.inputs)


def without_storage(model: nn.Module) -> nn.Module:
    """A copy of the model in eval mode, its parameters on the meta device; the model is only read.

    Raises UsageError for a model that cannot be copied so.
    """
    memo: dict[int, Any] = {}
    kept: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError("A compiled TorchScript module cannot be profiled: give the nn.Module it was made from.")
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = _stand_in(tensor)
                kept.append(tensor)
    try:
        return uncompiled(copy.deepcopy(model, memo)).eval()
    except Exception as error:
        raise UsageError(f"{type(model).__name__} cannot be copied, which profiling needs: {_line(error)}") from error


def _stand_in(tensor: Tensor) -> Tensor:
    """What takes a tensor's place in the copy: its shape alone, or its values where it is a small table of indices."""
    if nn.parameter.is_lazy(tensor):
        raise UsageError("A lazy module has no parameters yet: run the model once on a real batch first.")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(shape_only(tensor), requires_grad=False)
    table = not tensor.is_floating_point() and tensor.numel() <= CONSTANT
    return tensor.detach().clone() if table else shape_only(tensor)


def trace(model: nn.Module, input_shape: tuple[int, int, int]) -> Trace:
    """Follow one image of (C, H, W) through a copy of the model.

    Raises UsageError where the model does not take such images, or needs to know the values of its activations.
    """
    shadow = without_storage(model)
    recorder = _Recorder(shadow)
    recorder.watch(shadow)
    kinds = [p.dtype for p in shadow.parameters() if p.is_floating_point()]
    image = torch.empty((1, *input_shape), dtype=kinds[0] if kinds else torch.float32, device="meta")
    recorder.start(image)
    recorder.hold(image)
    try:
        with torch.no_grad(), recorder, isolated():
            output = shadow(image)
    except MlpconvError:
        raise
    except Exception as error:
        name, module = recorder.places[recorder.failed or 0]
        size = "x".join(map(str, input_shape))
        raise UsageError(
            f"{type(model).__name__} cannot be followed on images of {size}: in {name or 'its forward'} "
            f"({type(module).__name__}): {_line(error)}{batches_taken(shadow, image)}"
        ) from error
    finals = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return Trace(
        steps=tuple(recorder.steps),
        places=tuple(recorder.places),
        peak_bytes=recorder.peak,
        bounds=tuple(sorted(recorder.bounds)),
        output=recorder.fields.get(finals[0]) if finals else None,
        output_shape=tuple(finals[0].shape) if finals else (),
    )


def _line(error: Exception) -> str:
    """The first line of an error's message."""
    return first_line(error)
