"""Trace a network into a graph, read the graph, and replace modules.

Surgery changes a copy of a network, without renaming anything, in one of two ways:

- `replace_module` replaces a module. The network keeps its class and forward; enough where one step replaces another.
- Rewriting the graph, and building a `Rewritten` from it, where the forward itself must change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from mlpconv.analysis.input_shape import check_input_shape
from mlpconv.analysis.trace import without_storage
from mlpconv.errors import SurgeryError
from mlpconv.surgery.tracing.accept import check_model, deep_copy
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


def open_all(name: str, module: nn.Module) -> bool:  # noqa: ARG001  (an OpensModule takes both)
    """Open every module except those of torch.nn, as torch.fx does."""
    return isinstance(module, nn.Sequential) or not type(module).__module__.startswith(("torch.nn.", "torch.ao.nn."))


def meta_copy(model: nn.Module) -> nn.Module:
    """Return a copy on the meta device in the same modes; raise UsageError for a model that cannot be copied."""
    shadow = without_storage(model)
    for module, original in zip(shadow.modules(), model.modules(), strict=True):
        module.training = original.training
    return shadow


def trace(
    model: nn.Module, input_shape: tuple[int, int, int], *, opens: OpensModule = open_all, training: bool | None = None
) -> fx.GraphModule:
    """Trace a deep copy of the network into a graph, for images of (C, H, W).

    Nodes call the copy's modules by their names; `node.meta["val"]` is a node's output for a batch of two, on the meta
    device (see `shape_of`, `dtype_of`). A module that `opens` rejects, or that cannot be traced, is a single node.
    Sizes that the forward pass reads stay expressions; branches that depend on them are decided for this size.
    `training` is the mode of the forward pass (default: the model's own).

    The network itself is unchanged: parameters, buffers, modes and random state. The copy keeps parameters that the
    graph does not use (auxiliary heads). Raises UsageError for an invalid model or size, and SurgeryError, with the
    reason and the module's name, for a network that cannot be traced.
    """
    model, shape = check_model(model), check_input_shape(input_shape)
    shadow = meta_copy(model)
    if training is not None:
        shadow.train(training)
    return as_module(deep_copy(model), trace_graph(shadow, shape, opens))


def as_module(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Return the graph as a module with all modules and tensors of the root, including unused ones."""
    for name, constant in getattr(graph, "owning_constants", {}).items():
        setattr(root, name, constant)
    graph._tracer_cls = None  # unpickling a copy traces it with torch.fx's own tracer
    module = fx.GraphModule(root, graph, type(root).__name__)
    tensors = {name: value for name, value in module._buffers.items() if name not in root._buffers}
    for store in ("_modules", "_parameters", "_buffers"):
        getattr(module, store).clear()
        getattr(module, store).update(getattr(root, store))
    module._non_persistent_buffers_set = set(root._non_persistent_buffers_set)
    for name, value in tensors.items():  # plain attributes, which fx turns into buffers
        module.register_buffer(name, value, persistent=False)
    module.training = root.training
    return module


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape of a node's output for a batch of two; None if it is no tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None


def dtype_of(node: fx.Node) -> torch.dtype | None:
    """Return the dtype of a node's output; None if it is no tensor."""
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def module_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """Return the module that a node calls; None for functions, methods and tensors."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def calls_of(graph: fx.Graph, root: nn.Module) -> Mapping[nn.Module, list[fx.Node]]:
    """Return the calls of each module in order; a shared module has more than one."""
    calls: dict[nn.Module, list[fx.Node]] = {}
    for node in graph.find_nodes(op="call_module"):
        calls.setdefault(root.get_submodule(str(node.target)), []).append(node)
    return calls


def replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module with this name by another one in the same mode, everywhere the old one is used.

    `requires_grad` of the new parameters does not change. Raises SurgeryError if there is no module with this name.
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
    """Return the tensor or module with this dotted name."""
    path, _, last = name.rpartition(".")
    return getattr(root.get_submodule(path), last)
