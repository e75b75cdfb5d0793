"""Trace the forward pass of a network into a graph, for one input size, with the shape of every value.

The pass runs on a copy on the meta device, as in `mlpconv.analysis`: nothing is computed, no state changes, no random
number is drawn. Modules that are not opened are a single node.
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

from mlpconv.analysis.meta import OnMeta, isolated, meta_images
from mlpconv.errors import MlpconvError, SurgeryError, first_line
from mlpconv.surgery.tracing.contexts import changed_setting, current_settings
from mlpconv.surgery.tracing.hidden_calls import hidden_calls_traced
from mlpconv.surgery.tracing.proxy import ShapedProxy, TensorProxy, Untraceable, globals_of, len_traced
from mlpconv.surgery.tracing.reasons import failure_message, reason_of, refusal_message

__all__ = ["OpensModule", "drop_shape_queries", "trace_graph"]

OpensModule = Callable[[str, nn.Module], bool]
"""Predicate: whether to trace into the module with this name; other modules are a single node of the graph."""
BATCH = 2


class _Failed(Exception):
    """The forward pass itself fails on such images, even without tracing."""


class _Watch(OnMeta):
    """Intercept every tensor operation, and reject those on proxies outside a recorded step."""

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
                f"it runs {name} where no tracer sees it, as torch.func, TorchScript and torch.tensor do"
            )
        return func(*args, **(kwargs or {}))


class _Tracer(fx.Tracer):
    """torch.fx's tracer with proxies that know their shapes."""

    proxy_buffer_attributes = True

    def __init__(self, opens: OpensModule, opaque: Collection[str]) -> None:
        super().__init__()
        self.opens, self.opaque = opens, opaque
        self.working = False  # whether a value is being computed and nothing is recorded
        self.tensor_names: dict[int, str] = {}
        self.proxies: dict[str, Any] = {}
        self.settings: tuple[Any, ...] = ()
        self.refusal: Untraceable | None = None
        """The first untraceable step, and the modules `inside` which it runs: the forward pass may catch the error."""
        self.inside: list[str] = []

    def record(self, shadow: nn.Module, image: Tensor) -> fx.Graph:
        """Return the graph of the shadow's forward pass on the image."""
        self.image = image
        for name, tensor in (*shadow.named_parameters(), *shadow.named_buffers()):
            self.tensor_names[id(tensor)] = name
        opened = [m for name, m in shadow.named_modules() if not name or not self.is_leaf_module(m, name)]
        with len_traced(globals_of(opened)), hidden_calls_traced(), isolated(), torch.enable_grad(), _Watch(self):
            self.settings = current_settings()
            graph = self.trace(shadow)
            if self.refusal is not None:
                raise self.refusal
            return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is a single node."""
        return module_qualified_name in self.opaque or not self.opens(module_qualified_name, m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Record the call of a module, or the steps inside it."""

        def checked(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            for leaf in tree_leaves(output):
                self._check_recorded(leaf)
            return output

        return forward(*args, **kwargs) if self.working else super().call_module(m, checked, args, kwargs)

    def untraceable(self, reason: str) -> Untraceable:
        """Return the error to raise for a step that cannot be traced; the first one is kept."""
        if self.refusal is None:
            self.refusal, self.inside = Untraceable(reason), self.current_modules()
        return self.refusal

    def current_modules(self) -> list[str]:
        """Return the names of the opened modules that are currently running, outermost first."""
        names = [name for name, _ in self.module_stack.values() if name and name not in self.opaque]
        return [name for name in names if self.opens(name, self.root.get_submodule(name))]

    def _check_recorded(self, value: Any) -> None:
        """Raise Untraceable for a meta tensor that no step created and the network does not own."""
        if issubclass(type(value), fx.Proxy):
            recorded = value.tracer is self
        else:
            computed = isinstance(value, Tensor) and value.is_meta
            recorded = not computed or id(value) in self.tensor_names or value in self.tensor_attrs
        if not recorded:
            raise self.untraceable("it uses a tensor computed from its weights or the image where no tracer sees it")

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:  # noqa: ARG002
        """Return a parameter or buffer as a proxy, so that expressions of it stay in the graph."""
        name = None if self.working else self.tensor_names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in self.proxies:
            self.proxies[name] = self.create_proxy("get_attr", name, (), {})
        return self.proxies[name]

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:  # noqa: ARG002
        """Create a placeholder for the image, the only input; other arguments keep their defaults."""
        names = list(inspect.signature(root_fn).parameters.values())[1:]
        plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if not names or names[0].kind not in plain:
            raise SurgeryError("its forward has no named image argument, so it cannot be traced")
        required = [
            p.name for p in names[1:] if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if required:
            raise SurgeryError(f"its forward also requires {', '.join(required)}; it must take an image alone")
        return root_fn, [self.root, self.create_proxy("placeholder", names[0].name, (), {})]

    def create_arg(self, a: Any) -> Any:
        """Return the node of a proxy first, because torch.fx would treat a TensorProxy as a tensor."""
        self._check_recorded(a)
        if issubclass(type(a), fx.Proxy):
            return a.node
        return super().create_arg(a.item() if isinstance(a, np.generic) else a)

    def create_node(self, kind: str, target: Any, *rest: Any, **more: Any) -> fx.Node:
        """Create a node; one that reads a tensor of the network gets its value at once."""
        node = super().create_node(kind, target, *rest, **more)
        if kind == "get_attr":
            working, self.working = self.working, True
            node.meta["val"] = attrgetter(target)(self.root)
            self.working = working
        return node

    def proxy(self, node: fx.Node) -> ShapedProxy:
        """Return a proxy for a node."""
        return TensorProxy(node, self) if isinstance(node.meta.get("val"), Tensor) else ShapedProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """Record one step, and compute its value on meta tensors."""
        changed = changed_setting(self.settings)
        if changed:
            raise self.untraceable(f"it switches {changed} inside its forward pass, which a graph cannot represent")
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if kind == "placeholder":
            proxy.node.meta["val"] = self.image
        elif kind != "get_attr":
            proxy.node.meta["val"] = self._value(kind, target, *tree_map(_value_of, (args, kwargs)))
        return None if proxy.value is None else self.proxy(proxy.node)  # None itself, because of `mask is None`

    def _value(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        """Return the output of a step on meta tensors."""
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
            module = next(reversed(self.module_stack.values()))[0] if self.module_stack else ""
            raise _Failed(f"in {module or 'its forward'}: {reason_of(error)}") from error
        finally:
            self.working = False


def _value_of(leaf: Any) -> Any:
    return cast("ShapedProxy", leaf).value if issubclass(type(leaf), fx.Proxy) else leaf


def trace_graph(shadow: nn.Module, input_shape: tuple[int, int, int], opens: OpensModule) -> fx.Graph:
    """Return the graph of a forward pass over images of (C, H, W).

    `shadow` is a copy on the meta device in the desired mode (train or eval). Every node's `meta["val"]` holds its
    output for a batch of two. A module that cannot be traced becomes a single node, and the graph's `refusals` holds
    the reason. Raises SurgeryError if the network itself cannot be traced or rejects such images.
    """
    image = meta_images(shadow, BATCH, input_shape)
    opaque: dict[str, str] = {}
    while True:
        tracer = _Tracer(opens, opaque)
        memory = [(module, dict(vars(module))) for module in shadow.modules()]
        dicts = [(value, dict(value)) for _, state in memory for value in state.values() if type(value) is dict]
        try:
            graph = tracer.record(copy.copy(shadow), image)
        except (_Failed, SurgeryError) as error:
            raise SurgeryError(failure_message(shadow, image, str(error))) from error
        except MlpconvError:
            raise
        except Exception as error:
            inside = tracer.inside if tracer.refusal is not None else tracer.current_modules()
            if not inside:
                raise SurgeryError(refusal_message(shadow, image, tracer.refusal or error)) from error
            opaque[inside[-1]] = first_line(tracer.refusal or error)
        else:
            graph.refusals = opaque  # type: ignore[attr-defined]
            return _tidied(graph, tracer.root)
        finally:
            # Modules may cache values of this pass, such as a table of biases: proxies and meta tensors must not stay.
            for module, state in memory:
                vars(module).clear()
                vars(module).update(state)
            for cache, entries in dicts:
                cache.clear()
                cache.update(entries)


def _tidied(graph: fx.Graph, root: nn.Module) -> fx.Graph:
    """Drop unused shape queries, and collect the constants created during the pass."""
    drop_shape_queries(graph)
    constants = {}
    for node in graph.find_nodes(op="get_attr"):
        if node.target.startswith("_tensor_constant"):
            constants[node.target] = getattr(root, node.target)
    graph.owning_constants = constants  # type: ignore[attr-defined]
    return graph


def drop_shape_queries(graph: fx.Graph, replaced: Collection[fx.Node] = ()) -> list[fx.Node]:
    """Erase unused nodes that read sizes or parameters or are in `replaced`; return them.

    A single pass from the end suffices for chains of such nodes.
    """
    dropped = []
    for node in reversed(graph.nodes):
        query = node.op.startswith("call_") and not isinstance(node.meta.get("val"), Tensor | None)
        if not node.users and (query or node.op == "get_attr" or node in replaced):
            graph.erase_node(node)
            dropped.append(node)
    return dropped
