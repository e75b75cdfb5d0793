"""What flows through a network while it is written down: symbols that know the shape they stand for.

A symbol records every operation that touches it, as `torch.fx` does, and carries the value that the operation gives on
tensors without storage. So `x.shape[2] // 2` stays an expression of the graph, while `if x.shape[2] > 8` can be
answered. Only what depends on the numbers in a tensor cannot.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

__all__ = ["DataDependent", "Symbol", "lengths_recorded"]

IN_PLACE = ("add", "sub", "mul", "truediv", "floordiv", "pow", "matmul", "and", "or", "xor", "mod")


@contextmanager
def lengths_recorded(spaces: Iterable[dict[str, Any]]) -> Iterator[None]:
    """Let `len(x)` of a symbol be a symbol for functions with these global names; Python itself allows numbers only."""

    def length(given: Any) -> Any:
        tensor = issubclass(type(given), Symbol) and isinstance(given.value, Tensor)
        return given.size(0) if tensor else len(given)

    taken = [space for space in spaces if "len" not in space]
    try:
        for space in taken:
            space["len"] = length
        yield
    finally:
        for space in taken:
            space.pop("len", None)


class DataDependent(Exception):
    """The forward pass asks for the numbers in a tensor."""


class Symbol(fx.Proxy):
    """A value of the forward pass that is being recorded."""

    _is_param = False  # `isinstance(x, nn.Parameter)` asks for this

    @property
    def value(self) -> Any:
        """What it stands for; tensors have no storage."""
        return self.node.meta["val"]

    @property
    def __class__(self) -> Any:
        """So that `isinstance(x, torch.Tensor)` answers as it would without tracing."""
        return type(self.value)

    @__class__.setter
    def __class__(self, _: type) -> None:
        raise TypeError("a symbol's class is that of its value")

    def __getattr__(self, name: str) -> Any:
        if isinstance(self.value, dict) and name in ("items", "values"):  # x.max(2).values is no method
            pairs = [(key, self[key]) for key in self.value]
            return lambda: pairs if name == "items" else [symbol for _, symbol in pairs]
        held = getattr(self.value, name)  # AttributeError here is the answer to hasattr
        if callable(held) and not isinstance(held, Tensor):
            return _Method(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def _known(self) -> Any:
        """The value, which must not depend on the numbers in a tensor."""
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(self.value)):
            raise DataDependent("its forward pass decides by the numbers in a tensor")
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


class _Method:
    """A method of a symbol, before it is called."""

    def __init__(self, owner: Symbol, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.owner.tracer.create_proxy("call_method", self.name, (self.owner, *args), kwargs)


def _record_in_place(name: str) -> Any:
    """`x += y` writes into a tensor, and into what it is a view of: it is recorded as that and not as a sum."""
    plain = getattr(operator, f"{name}_" if name in ("and", "or") else name)
    in_place = getattr(operator, f"i{name}")

    def record(self: Symbol, other: Any) -> Any:
        function = in_place if isinstance(self.value, Tensor) else plain
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in IN_PLACE:
    setattr(Symbol, f"__i{_name}__", _record_in_place(_name))
