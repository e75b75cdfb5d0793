"""What flows through a network while it is written down: symbols that know the shape they stand for.

A symbol records every operation that touches it, as `torch.fx` does, and carries the value that the operation gives on
tensors without storage. So `x.shape[2] // 2` stays an expression of the graph, while `if x.shape[2] > 8` can be
answered. Only what depends on the numbers in a tensor cannot.
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
"""Classes of values that C++ tells by their type alone."""
RANK = ("dim", "ndim", "ndimension")
IN_PLACE = ("add", "sub", "mul", "truediv", "floordiv", "pow", "matmul", "and", "or", "xor", "mod")


def globals_of(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """The global names of forward passes, of functions that modules hold, and of functions among those names."""
    held = [function for m in modules for function in (type(m).forward, *vars(m).values())]
    spaces = {id(space): space for each in held if isinstance(space := getattr(each, "__globals__", None), dict)}
    named = [each for space in spaces.values() for each in space.values() if isinstance(each, FunctionType)]
    foreign = (each for each in named if not (each.__module__ or "").startswith(("torch.", "mlpconv.surgery.")))
    return list((spaces | {id(each.__globals__): each.__globals__ for each in foreign}).values())


@contextmanager
def len_traced(spaces: Iterable[dict[str, Any]]) -> Iterator[None]:
    """Let `len(x)` of a symbol be a symbol for functions with these global names; Python itself allows numbers only."""

    def length(given: Any) -> Any:
        tensor = issubclass(type(given), ShapedProxy) and isinstance(given.value, Tensor)
        return given.size(0) if tensor else len(given)

    taken = [space for space in spaces if "len" not in space]
    try:
        for space in taken:
            space["len"] = length
        yield
    finally:
        for space in taken:
            space.pop("len", None)


class Untraceable(Exception):
    """A step of the forward pass that no graph can hold: it needs the numbers in a tensor, or happens out of sight."""


class ShapedProxy(fx.Proxy):
    """A value of the forward pass that is being recorded."""

    tracer: Any
    _is_param = False  # `isinstance(x, nn.Parameter)` asks for this

    def __hash__(self) -> int:
        """A size is no key: a table that outlives this pass would hold the symbol, and not find it in the next."""
        raise TypeError("it looks up a size of the image in a dictionary, a set or a cache")

    @property
    def value(self) -> Any:
        """What it stands for; tensors have no storage."""
        return self.node.meta["val"]

    @property
    def __class__(self) -> Any:
        """So that `isinstance(x, tuple)` answers as it would without tracing.

        PyTorch's C++ asks the same question and then reads memory of its own layout: a symbol claims to be one of its
        objects only where it is one.
        """
        value = self.value
        return type(value) if isinstance(value, PLAIN) or is_dataclass(value) else ShapedProxy

    @__class__.setter
    def __class__(self, _: type) -> None:
        raise TypeError("a symbol's class is that of its value")

    def __getattr__(self, name: str) -> Any:
        if isinstance(self.value, dict) and name in ("items", "values"):  # x.max(2).values is no method
            pairs = [(key, self[key]) for key in self.value]
            return lambda: pairs if name == "items" else [symbol for _, symbol in pairs]
        if isinstance(self.value, Tensor) and name in RANK:  # the same for images of every size
            return self.value.dim() if name == "ndim" else self.value.dim
        held = getattr(self.value, name)  # AttributeError here is the answer to hasattr
        if callable(held) and not isinstance(held, Tensor):
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
        raise self.tracer.untraceable("it pickles what flows through it")

    def _known(self) -> Any:
        """The value, which must not depend on the numbers in a tensor."""
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(self.value)):
            raise self.tracer.untraceable("its forward pass decides by the numbers in a tensor")
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
        return any(bool(each == item) for each in self)

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
        """The keys of a dictionary."""
        return self.value.keys()


class TensorProxy(ShapedProxy, Tensor):  # type: ignore[misc]
    """A symbol of a tensor that is a tensor itself, without storage.

    Whatever reads it by a way that records nothing, C++ above all, finds what it expects.
    """

    __hash__ = object.__hash__

    def __new__(cls, node: fx.Node, tracer: fx.Tracer) -> Self:  # noqa: ARG004
        """A tensor of the shape of the node's."""
        return Tensor._make_subclass(cls, node.meta["val"])

    @property
    def __class__(self) -> Any:
        """A parameter's symbol is a parameter."""
        return type(self.value)

    @__class__.setter
    def __class__(self, _: type) -> None:
        raise TypeError("a symbol's class is that of its value")

    def __getattribute__(self, name: str) -> Any:
        """What belongs to tensors is recorded and not looked up."""
        if name in OWN or name.startswith("__") or name in object.__getattribute__(self, "__dict__"):
            return object.__getattribute__(self, name)
        return ShapedProxy.__getattr__(self, name)


OWN = frozenset({"node", "tracer", *vars(ShapedProxy)}) - {"__doc__", "__module__"}


class _Method:
    """A method of a symbol, before it is called."""

    def __init__(self, owner: ShapedProxy, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.owner.tracer.create_proxy("call_method", self.name, (self.owner, *args), kwargs)


def _record_in_place(name: str) -> Any:
    """`x += y` writes into a tensor, and into what it is a view of: it is recorded as that and not as a sum."""
    plain = getattr(operator, f"{name}_" if name in ("and", "or") else name)
    in_place = getattr(operator, f"i{name}")

    def record(self: ShapedProxy, other: Any) -> Any:
        function = in_place if isinstance(self.value, Tensor) else plain
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in IN_PLACE:
    setattr(ShapedProxy, f"__i{_name}__", _record_in_place(_name))
