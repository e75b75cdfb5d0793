"""Trace one forward pass on the meta device: cost, memory and receptive field of every operation.

The pass runs on a copy of the model whose parameters have shapes and no storage. A dispatch mode intercepts every ATen
operation, whether it comes from a module, a function or an operator; hooks on the copy tell the current module.
"""

from __future__ import annotations

import copy
import sys
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mlpconv.analysis.cost import Cost, cost_of, size_in_bytes
from mlpconv.analysis.meta import batches_taken, isolated, meta_images, run_on_meta, shape_only, uncompiled
from mlpconv.errors import MlpconvError, UsageError, first_line
from mlpconv.receptive_field.call import Call
from mlpconv.receptive_field.field import Field
from mlpconv.receptive_field.following import Follower

__all__ = ["Trace", "TracedOp", "trace", "without_storage"]

# PyTorch loads its shape rules at the first meta operation, which takes a second or two: do it at import.
torch.relu(torch.empty(0, device="meta"))

CONSTANT = 1 << 20
"""Most elements of a non-parameter tensor that keeps its values, such as a table of indices."""


@dataclass(frozen=True)
class TracedOp:
    """One operation of the forward pass."""

    operation: str
    place: int
    """Index of the module call that it belongs to."""
    cost: Cost
    shape: tuple[int, ...]
    params: int
    """Number of parameters that no earlier operation read."""
    new_bytes: int
    """Bytes of its output; 0 for a view or an in-place operation."""
    field: Field | None
    """None if the output does not depend on the image."""


@dataclass(frozen=True)
class Trace:
    """A traced forward pass on one image."""

    steps: tuple[TracedOp, ...]
    places: tuple[tuple[str, nn.Module], ...]
    """Module calls: name and module (of the copy)."""
    peak_bytes: int
    """Peak bytes of live activations, including the image."""
    bounds: tuple[str, ...]
    """Operations whose receptive field is an upper bound."""
    output: Field | None
    """The field of the model's output, or of the first tensor in it."""
    output_shape: tuple[int, ...]


class _Recorder(Follower):
    """Record field, cost and memory of every operation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(run_on_meta)
        self.steps: list[TracedOp] = []
        self.places: list[tuple[str, nn.Module]] = [("", model)]
        self.stack = [0]
        self.failed: int | None = None
        """Index of the module call that raised an exception, if any."""
        self.handled = sys.exc_info()[1]
        self.live: dict[int, int] = {}
        self.peak = 0
        self.unread = {p.untyped_storage()._cdata: p.numel() for p in model.parameters()}

    def watch(self, model: nn.Module) -> None:
        """Keep track of the current module of the (copied) model."""

        def enter(name: str, module: nn.Module) -> None:
            self.failed = None
            self.stack.append(len(self.places))
            self.places.append((name, module))

        def leave(*_: object) -> None:
            place = self.stack.pop()
            if self.failed is None and sys.exc_info()[1] is not self.handled:
                self.failed = place

        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda child, _, name=name: enter(name, child))
            module.register_forward_hook(leave, always_call=True)

    def hold(self, tensor: Tensor) -> int:
        """Count a tensor's storage until it is freed; return its bytes, or 0 if it is already counted."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.live:
            return 0
        self.live[key] = size = size_in_bytes(tensor)
        weakref.finalize(storage, self.live.pop, key)
        self.peak = max(self.peak, sum(self.live.values()))
        return size

    def amend(self, tensor: Tensor, field: Field) -> None:
        """Set the field of the result of several operations, and attribute it to the last of them."""
        super().amend(tensor, field)
        self.steps[-1] = replace(self.steps[-1], shape=tuple(tensor.shape), field=field)

    def see(self, call: Call) -> list[Field | None]:
        """Record an operation, unless it runs on real values."""
        if not call.outputs[0].is_meta:
            return []
        tracked = [tensor for tensor in call.inputs if self.fields.get(tensor) is not None]
        fields = super().see(call)
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
        return fields

    def _first_read(self, call: Call) -> int:
        return sum(self.unread.pop(tensor.untyped_storage()._cdata, 0) for tensor in call.inputs)


def without_storage(model: nn.Module) -> nn.Module:
    """Return a copy of the model in eval mode with its parameters on the meta device; the model is only read.

    Raises UsageError for a model that cannot be copied.
    """
    memo: dict[int, Any] = {}
    alive: list[Tensor] = []  # so that no id in memo is reused
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError("A compiled TorchScript module cannot be profiled: pass the original nn.Module.")
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = _stand_in(tensor)
                alive.append(tensor)
    try:
        return uncompiled(copy.deepcopy(model, memo)).eval()
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} cannot be copied, which profiling requires: {first_line(error)}"
        ) from error


def _stand_in(tensor: Tensor) -> Tensor:
    """Return the tensor for the copy: a meta tensor, or a clone if it is a small table of indices."""
    if nn.parameter.is_lazy(tensor):
        raise UsageError("A lazy module has no parameters yet: first run the model on a real batch.")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(shape_only(tensor), requires_grad=False)
    table = not tensor.is_floating_point() and tensor.numel() <= CONSTANT
    return tensor.detach().clone() if table else shape_only(tensor)


def trace(model: nn.Module, input_shape: tuple[int, int, int]) -> Trace:
    """Trace one image of (C, H, W) through a copy of the model.

    Raises UsageError if the model rejects such images or depends on the values of its activations.
    """
    shadow = without_storage(model)
    recorder = _Recorder(shadow)
    recorder.watch(shadow)
    image = meta_images(shadow, 1, input_shape)
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
            f"{type(model).__name__} cannot be traced on images of {size}: in {name or 'its forward'} "
            f"({type(module).__name__}): {first_line(error)}{batches_taken(shadow, image)}"
        ) from error
    outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return Trace(
        steps=tuple(recorder.steps),
        places=tuple(recorder.places),
        peak_bytes=recorder.peak,
        bounds=tuple(sorted(recorder.bounds)),
        output=recorder.fields.get(outputs[0]) if outputs else None,
        output_shape=tuple(outputs[0].shape) if outputs else (),
    )
