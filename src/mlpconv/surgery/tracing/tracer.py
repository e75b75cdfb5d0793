"""The forward pass of a network as a graph, for one size of images, with the shape of everything in it.

It runs on a copy whose parameters have shapes and no storage, as in `mlpconv.analysis`; nothing is computed, no state
changes, no random number is drawn. Modules that are not opened are one step each, whatever they do inside.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping
from operator import attrgetter
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map

from mlpconv.analysis.meta import OnMeta, isolated
from mlpconv.errors import MlpconvError, SurgeryError, first_line
from mlpconv.surgery.tracing.contexts import changed_setting, current_settings
from mlpconv.surgery.tracing.hidden_calls import hidden_calls_traced
from mlpconv.surgery.tracing.proxy import ShapedProxy, TensorProxy, Untraceable, globals_of, len_traced
from mlpconv.surgery.tracing.reasons import failure_message, reason_of, refusal_message

__all__ = ["OpensModule", "drop_shape_queries", "trace_graph"]

OpensModule = Callable[[str, nn.Module], bool]
"""Whether to look inside the module of this name; what is not opened is one node of the graph."""
BATCH = 2


class _Failed(Exception):
    """The forward pass itself fails on such images, traced or not."""


class _Watch(OnMeta):  # type: ignore[no-untyped-call]
    """Sees every operation on tensors: those of a recorded step, and those that no step records."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracer = tracer

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self.tracer.working:
            return super().__torch_dispatch__(func, types, args, kwargs)
        if any(issubclass(type(leaf), TensorProxy) for leaf in tree_leaves((args, kwargs))):
            name = str(func).rpartition(".")[0]  # without the overload
            raise self.tracer.untraceable(
                f"it runs {name} unseen by any tracer, as torch.func, TorchScript and torch.tensor do"
            )
        return func(*args, **(kwargs or {}))


class _Tracer(fx.Tracer):
    """torch.fx's tracer with symbols that know their shapes."""

    proxy_buffer_attributes = True

    def __init__(self, opens: OpensModule, opaque: Collection[str]) -> None:
        super().__init__()
        self.opens, self.opaque = opens, opaque
        self.working = False  # whether values are worked out, and nothing is recorded
        self.held: dict[int, str] = {}
        self.symbols: dict[str, Any] = {}
        self.settings: tuple[Any, ...] = ()
        self.refusal: Untraceable | None = None
        """The first step that could not be traced, and `inside` which modules: the forward pass may catch an error."""
        self.inside: list[str] = []

    def record(self, shadow: nn.Module, image: Tensor) -> fx.Graph:
        """The graph of the shadow's forward pass on the image."""
        self.image = image
        for name, held in (*shadow.named_parameters(), *shadow.named_buffers()):
            self.held[id(held)] = name
        opened = [m for name, m in shadow.named_modules() if not name or not self.is_leaf_module(m, name)]
        names = globals_of(opened)
        with (
            len_traced(names),
            hidden_calls_traced(),
            isolated(),
            torch.enable_grad(),
            _Watch(self),
        ):
            self.settings = current_settings()
            graph = self.trace(shadow)
            if self.refusal is not None:
                raise self.refusal
            return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """One node for each module that is not opened."""
        return module_qualified_name in self.opaque or not self.opens(module_qualified_name, m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Record the call of a module, or what happens inside it."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            returned = forward(*args, **kwargs)
            for leaf in tree_leaves(returned):
                self._check_seen(leaf)
            return returned

        return forward(*args, **kwargs) if self.working else super().call_module(m, watched, args, kwargs)

    def untraceable(self, reason_of: str) -> Untraceable:
        """The error to raise for a step that cannot be traced."""
        if self.refusal is None:
            self.refusal, self.inside = Untraceable(reason_of), self.places()
        return self.refusal

    def places(self) -> list[str]:
        """The names of the opened modules in which the forward pass is now."""
        names = [name for name, _ in self.module_stack.values() if name and name not in self.opaque]
        return [name for name in names if self.opens(name, self.root.get_submodule(name))]

    def _check_seen(self, value: Any) -> None:
        """Untraceable for a tensor that no step has made and the network does not hold."""
        if issubclass(type(value), fx.Proxy):
            seen = value.tracer is self
        else:
            made = isinstance(value, Tensor) and value.is_meta
            seen = not made or id(value) in self.held or value in self.tensor_attrs
        if not seen:
            raise self.untraceable("it uses a tensor that was made of its weights or of the image out of sight")

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:  # noqa: ARG002
        """A parameter or buffer as a symbol, so that what is made of it stays an expression of the graph."""
        name = None if self.working else self.held.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in self.symbols:
            self.symbols[name] = self.create_proxy("get_attr", name, (), {})
        return self.symbols[name]

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:  # noqa: ARG002
        """The image alone is an input; every other argument must have a default, and keeps it."""
        names = list(inspect.signature(root_fn).parameters.values())[1:]
        plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if not names or names[0].kind not in plain:
            raise SurgeryError("its forward takes no named image argument, so its graph cannot be written down")
        wanted = [p.name for p in names[1:] if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if wanted:
            raise SurgeryError(f"its forward also needs {', '.join(wanted)}; networks of images alone are accepted")
        return root_fn, [self.root, self.create_proxy("placeholder", names[0].name, (), {})]

    def create_arg(self, a: Any) -> Any:
        """A symbol's node, before anybody takes it for the tensor that it stands for."""
        self._check_seen(a)
        if issubclass(type(a), fx.Proxy):
            return a.node
        return super().create_arg(a.item() if isinstance(a, np.generic) else a)

    def create_node(self, kind: str, target: Any, *rest: Any, **more: Any) -> fx.Node:
        """A node; one that reads a tensor of the network knows it at once."""
        node = super().create_node(kind, target, *rest, **more)
        if kind == "get_attr":
            before, self.working = self.working, True
            node.meta["val"] = attrgetter(target)(self.root)
            self.working = before
        return node

    def proxy(self, node: fx.Node) -> ShapedProxy:
        """A symbol."""
        return TensorProxy(node, self) if isinstance(node.meta.get("val"), Tensor) else ShapedProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """Record one step, and work out its value on tensors without storage."""
        changed = changed_setting(self.settings)
        if changed:
            raise self.untraceable(f"it switches {changed} inside its forward pass, which no graph keeps")
        symbol = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if kind == "placeholder":
            symbol.node.meta["val"] = self.image
        elif kind != "get_attr":
            symbol.node.meta["val"] = self._value(kind, target, *tree_map(_bare, (args, kwargs)))
        return None if symbol.value is None else self.proxy(symbol.node)  # `mask is None` is asked of the object

    def _value(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        """What a step makes of tensors without storage."""
        self.working = True
        try:
            with torch.no_grad():
                if kind == "call_module":
                    return self.root.get_submodule(target)(*args, **kwargs)
                return (
                    getattr(args[0], target)(*args[1:], **kwargs) if kind == "call_method" else target(*args, **kwargs)
                )
        except Exception as error:
            if kind != "call_module":
                raise self.untraceable(reason_of(error)) from error
            place = next(reversed(self.module_stack.values()))[0] if self.module_stack else ""
            raise _Failed(f"in {place or 'its forward'}: {reason_of(error)}") from error
        finally:
            self.working = False


def _bare(leaf: Any) -> Any:
    return cast("ShapedProxy", leaf).value if issubclass(type(leaf), fx.Proxy) else leaf


def trace_graph(shadow: nn.Module, input_shape: tuple[int, int, int], opens: OpensModule) -> fx.Graph:
    """The graph of a forward pass over images of (C, H, W).

    `shadow` is a copy without storage in the mode (train or eval) that is meant. Every node's `meta["val"]` holds what
    it makes of a batch of two. A module whose inside cannot be traced becomes one node, and the graph's `refusals` says
    why. Raises SurgeryError where that is true of the network itself, or it does not take such images.
    """
    kinds = [p.dtype for p in shadow.parameters() if p.is_floating_point()]
    image = torch.empty((BATCH, *input_shape), dtype=kinds[0] if kinds else torch.float32, device="meta")
    opaque: dict[str, str] = {}
    while True:
        tracer = _Tracer(opens, opaque)
        memory = [(module, dict(vars(module))) for module in shadow.modules()]
        kept = [(held, dict(held)) for _, state in memory for held in state.values() if type(held) is dict]
        try:
            graph = tracer.record(copy.copy(shadow), image)
        except (_Failed, SurgeryError) as error:
            raise SurgeryError(failure_message(shadow, image, str(error))) from error
        except MlpconvError:
            raise
        except Exception as error:
            inside = tracer.inside if tracer.refusal is not None else tracer.places()
            if not inside:
                raise SurgeryError(refusal_message(shadow, image, tracer.refusal or error)) from error
            opaque[inside[-1]] = first_line(tracer.refusal or error)
        else:
            graph.refusals = opaque  # type: ignore[attr-defined]
            return _tidied(graph, tracer.root)
        finally:
            # What a module remembers of this pass (a table of biases, say) is no number, and of no use to the next one.
            for module, state in memory:
                vars(module).clear()
                vars(module).update(state)
            for held, entries in kept:
                held.clear()
                held.update(entries)


def _tidied(graph: fx.Graph, root: nn.Module) -> fx.Graph:
    """Without the questions that were asked of shapes; with the tensors that were made on the way."""
    drop_shape_queries(graph)
    constants = {}
    for node in graph.find_nodes(op="get_attr"):
        if node.target.startswith("_tensor_constant"):
            constants[node.target] = getattr(root, node.target)
    graph.owning_constants = constants  # type: ignore[attr-defined]
    return graph


def drop_shape_queries(graph: fx.Graph, replaced: Collection[fx.Node] = ()) -> list[fx.Node]:
    """Take away what is read, asked for or replaced, and not used: sizes, parameters, and steps that have a successor.

    All in one pass from the end: a question may be all that holds a step, and a step all that holds a question.
    """
    dropped = []
    for node in reversed(graph.nodes):
        asked = node.op.startswith("call_") and not isinstance(node.meta.get("val"), Tensor | None)
        if not node.users and (asked or node.op == "get_attr" or node in replaced):
            graph.erase_node(node)
            dropped.append(node)
    return dropped
