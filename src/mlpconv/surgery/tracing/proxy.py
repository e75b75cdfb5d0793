"""Proxies that stand for values during tracing and know their shapes.

A proxy records every operation on it, as `torch.fx` does, and carries the operation's result on meta tensors. So
`x.shape[2] // 2` stays an expression of the graph, while `if x.shape[2] > 8` can be evaluated. Only what depends on the
values in a tensor cannot.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from types import FunctionType
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

__all__ = ["ShapedProxy", "TensorProxy", "Untraceable", "globals_of", "len_traced"]

PLAIN = (
    int, float, complex, str, bytes, tuple, list, dict, set, range, type(None),
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
"""Classes that C++ recognises by type alone."""
RANK = ("dim", "ndim", "ndimension")
IN_PLACE = ("add", "sub", "mul", "truediv", "floordiv", "pow", "matmul", "and", "or", "xor", "mod")


def globals_of(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Return the global namespaces of forward methods, of modules' function attributes, and of functions in those."""
    attributes = [value for m in modules for value in (type(m).forward, *vars(m).values())]
    spaces = {
        id(space): space for value in attributes if isinstance(space := getattr(value, "__globals__", None), dict)
    }
    functions = [value for space in spaces.values() for value in space.values() if isinstance(value, FunctionType)]
    foreign = (f for f in functions if not (f.__module__ or "").startswith(("torch.", "mlpconv.surgery.")))
    return list((spaces | {id(function.__globals__): function.__globals__ for function in foreign}).values())


@contextmanager
def len_traced(spaces: Iterable[dict[str, Any]]) -> Iterator[None]:
    """Make `len(x)` of a proxy return a proxy in these namespaces, by temporarily shadowing the builtin.

    Python itself requires `__len__` to return an int, which would fix the batch size in the graph.
    """

    def length(value: Any) -> Any:
        tensor = issubclass(type(value), ShapedProxy) and isinstance(value.value, Tensor)
        return value.size(0) if tensor else len(value)

    shadowed = [space for space in spaces if "len" not in space]
    try:
        for space in shadowed:
            space["len"] = length
        yield
    finally:
        for space in shadowed:
            space.pop("len", None)


class Untraceable(Exception):
    """A step that a graph cannot represent: it depends on tensor values, or bypasses the tracer."""


class ShapedProxy(fx.Proxy):
    """A value of the traced forward pass."""

    tracer: Any
    _is_param = False  # `isinstance(x, nn.Parameter)` asks for this

    def __hash__(self) -> int:
        """Raise TypeError: a table that outlives this pass would hold a proxy as its key."""
        raise TypeError("it looks up an image size in a dictionary, a set or a cache")

    @property
    def value(self) -> Any:
        """The value that it stands for, with tensors on the meta device."""
        return self.node.meta["val"]

    @property
    def __class__(self) -> Any:
        """The class of the value, so that `isinstance(x, tuple)` is the same as without tracing.

        PyTorch's C++ code checks classes too and then reads the object's memory, so a proxy reports only classes for
        which that is safe.
        """
        value = self.value
        return type(value) if isinstance(value, PLAIN) or is_dataclass(value) else ShapedProxy

    @__class__.setter
    def __class__(self, _: type) -> None:
        raise TypeError("the class of a proxy is that of its value")

    def __getattr__(self, name: str) -> Any:
        if isinstance(self.value, dict) and name in ("items", "values"):  # of a dict; x.max(2).values is no method
            pairs = [(key, self[key]) for key in self.value]
            return lambda: pairs if name == "items" else [proxy for _, proxy in pairs]
        if isinstance(self.value, Tensor) and name in RANK:  # the same for images of every size
            return self.value.dim() if name == "ndim" else self.value.dim
        attribute = getattr(self.value, name)  # raises AttributeError for hasattr
        if callable(attribute) and not isinstance(attribute, Tensor):
            return _Method(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in OWN and (hasattr(self.value, name) or not isinstance(self.value, Tensor)):
            raise self.tracer.untraceable(f"it sets .{name} of a {type(self.value).__name__} inside its forward pass")
        object.__setattr__(self, name, value)

    def __copy__(self) -> Any:
        return self.tracer.create_proxy("call_function", copy.copy, (self,), {})

    def __deepcopy__(self, memo: object) -> Any:
        return self.tracer.create_proxy("call_function", copy.deepcopy, (self,), {})

    def __reduce_ex__(self, protocol: object) -> Any:
        raise self.tracer.untraceable("it pickles an activation")

    def _known(self) -> Any:
        """Return the value, which must not contain tensors."""
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(self.value)):
            raise self.tracer.untraceable("its control flow depends on the values in a tensor")
        return self.value

    def __bool__(self) -> bool:
        return bool(self._known())

    def __int__(self) -> int:
        return int(self._known())

    def __float__(self) -> float:
        return float(self._known())

    def __index__(self) -> int:
        return operator.index(self._known())

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)

    def __contains__(self, item: object) -> bool:
        return any(bool(element == item) for element in self)

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.value, dict):
            return iter(list(self.value))
        return (self[index] for index in range(len(self.value)))

    def __getitem__(self, key: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def keys(self) -> Any:
        """Return the keys of a dictionary."""
        return self.value.keys()


class TensorProxy(ShapedProxy, Tensor):  # type: ignore[misc]
    """A proxy of a tensor that is itself a meta tensor.

    C++ code that reads it without recording an operation finds a valid tensor.
    """

    __hash__ = object.__hash__

    def __new__(cls, node: fx.Node, tracer: fx.Tracer) -> Self:  # noqa: ARG004
        """Create a meta tensor with the shape of the node's value."""
        return Tensor._make_subclass(cls, node.meta["val"])

    @property
    def __class__(self) -> Any:
        """The class of the value: the proxy of a parameter is a parameter."""
        return type(self.value)

    @__class__.setter
    def __class__(self, _: type) -> None:
        raise TypeError("the class of a proxy is that of its value")

    def __getattribute__(self, name: str) -> Any:
        """Record attributes of tensors instead of reading them."""
        if name in OWN or name.startswith("__") or name in object.__getattribute__(self, "__dict__"):
            return object.__getattribute__(self, name)
        return ShapedProxy.__getattr__(self, name)


OWN = frozenset({"node", "tracer", *vars(ShapedProxy)}) - {"__doc__", "__module__"}


class _Method:
    """A bound method of a proxy."""

    def __init__(self, owner: ShapedProxy, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.owner.tracer.create_proxy("call_method", self.name, (self.owner, *args), kwargs)


def _record_in_place(name: str) -> Any:
    """Return an in-place operator that is recorded as such, because `x += y` also writes to views of `x`."""
    plain = getattr(operator, f"{name}_" if name in ("and", "or") else name)
    in_place = getattr(operator, f"i{name}")

    def record(self: ShapedProxy, other: Any) -> Any:
        function = in_place if isinstance(self.value, Tensor) else plain
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in IN_PLACE:
    setattr(ShapedProxy, f"__i{_name}__", _record_in_place(_name))
