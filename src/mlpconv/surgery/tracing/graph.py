"""A network as a graph of its steps, and the small changes that every operation is made of.

Two ways to change a network, both on a copy whose names stay as they were:

- `replace_module` puts another module in the place of one: the class, its forward, its modes, everything else stays.
  Enough wherever a step becomes another step.
- rewriting the graph, and `assemble` to make a module of it: where the forward itself must change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from mlpconv.analysis.input_shape import check_input_shape
from mlpconv.analysis.trace import without_storage
from mlpconv.errors import SurgeryError
from mlpconv.surgery.proof.accept import check_model, deep_copy
from mlpconv.surgery.tracing.tracer import OpensModule, trace_graph

__all__ = [
    "calls_of",
    "dtype_of",
    "meta_copy",
    "module_of",
    "open_all",
    "replace_module",
    "shape_of",
    "trace",
]


def open_all(name: str, module: nn.Module) -> bool:  # noqa: ARG001  (every predicate of its kind takes both)
    """Look inside every module but those of torch.nn, as torch.fx does."""
    return isinstance(module, nn.Sequential) or not type(module).__module__.startswith(("torch.nn.", "torch.ao.nn."))


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy in the same modes whose parameters have shapes and no storage; SurgeryError where there can be none."""
    shadow = without_storage(model)
    for own, other in zip(shadow.modules(), model.modules(), strict=True):
        own.training = other.training
    return shadow


def trace(
    model: nn.Module, input_shape: tuple[int, int, int], *, opens: OpensModule = open_all, training: bool | None = None
) -> fx.GraphModule:
    """A deep copy of the network as a graph of its steps, for images of (C, H, W).

    Nodes call the copy's own modules, under their own names; `node.meta["val"]` is what a node makes of a batch of two,
    without storage (`shape_of`, `dtype_of`). Modules that `opens` declines, and those whose inside cannot be written
    down, are one node each. Sizes that the forward pass reads stay expressions; what it decides by them is decided for
    this size. `training` is the mode of the forward pass; the model's own if None.

    The network itself is untouched: parameters, buffers, modes and random numbers. Parameters that the graph does not
    use (auxiliary heads) are in the copy all the same. Raises UsageError for what is no module or size, SurgeryError,
    with the reason and the module's name, for a network that cannot be written down.
    """
    model, shape = check_model(model), check_input_shape(input_shape)
    shadow = meta_copy(model)
    if training is not None:
        shadow.train(training)
    return as_module(deep_copy(model), trace_graph(shadow, shape, opens))


def as_module(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The graph over the root's own modules and tensors, also those that the graph does not use."""
    for name, constant in getattr(graph, "owning_constants", {}).items():
        setattr(root, name, constant)
    graph._tracer_cls = None  # a copy that is loaded from a pickle is traced by torch.fx's own
    made = fx.GraphModule(root, graph, type(root).__name__)
    tensors = {name: value for name, value in made._buffers.items() if name not in root._buffers}
    for store in ("_modules", "_parameters", "_buffers"):
        getattr(made, store).clear()
        getattr(made, store).update(getattr(root, store))
    made._non_persistent_buffers_set = set(root._non_persistent_buffers_set)
    for name, value in tensors.items():  # plain attributes, which fx makes buffers
        made.register_buffer(name, value, persistent=False)
    made.training = root.training
    return made


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of what a node makes of a batch of two; None for what is no tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None


def dtype_of(node: fx.Node) -> torch.dtype | None:
    """The number format of what a node makes; None for what is no tensor."""
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def module_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """The module that a node calls; None for functions, methods and tensors."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def calls_of(graph: fx.Graph, root: nn.Module) -> Mapping[nn.Module, list[fx.Node]]:
    """For each module that the graph calls, its calls in order: more than one where it is shared."""
    found: dict[nn.Module, list[fx.Node]] = {}
    for node in graph.find_nodes(op="call_module"):
        found.setdefault(root.get_submodule(str(node.target)), []).append(node)
    return found


def replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one of this name, in the same mode, wherever the old one stands.

    Its parameters are as trainable as they come. Raises SurgeryError where there is no such module.
    """
    try:
        old = root.get_submodule(name)
    except AttributeError as error:
        raise SurgeryError(f"{type(root).__name__} has no module {name!r}.") from error
    module.train(old.training)
    for parent in list(root.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = module


def attribute(root: nn.Module, name: str) -> Any:
    """The tensor or module of this dotted name."""
    path, _, last = name.rpartition(".")
    return getattr(root.get_submodule(path), last)
