"""One operation of a forward pass, with its arguments by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

__all__ = ["Call", "bind"]


@dataclass(frozen=True)
class Call:
    """An ATen operation that has been run on tensors without storage."""

    func: OpOverload
    name: str
    """Without namespace, overload, and the underscore of the in-place form: "convolution", "add"."""
    args: Mapping[str, Any]
    """Every argument by its name in the schema, defaults included."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    in_place: bool

    def __getitem__(self, argument: str) -> Any:
        return self.args[argument]

    def tensor(self, *names: str) -> Tensor:
        """The tensor argument that has one of these names."""
        return next(value for name in names if isinstance(value := self.args.get(name), Tensor))

    def numbers(self, argument: str, count: int, default: int = 1) -> list[int]:
        """A size argument, one number a spatial dimension: [3] stands for 3 in each, [] for the default."""
        given = [int(number) for number in self.args.get(argument) or [default]]
        return given * count if len(given) == 1 else given

    def dims(self, argument: str = "dim") -> list[int]:
        """A dimension argument as negative numbers; all dimensions where none is named."""
        rank = self.inputs[0].dim()
        given = self.args.get(argument)
        if given is None or given == []:
            return list(range(-rank, 0))
        listed = given if isinstance(given, list | tuple) else [given]
        return [dim if dim < 0 else dim - rank for dim in listed]


def bind(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Call:
    """The call, with its arguments under the names of the operation's schema."""
    schema = func._schema
    name = schema.name.split("::")[-1]
    in_place = name.endswith("_") and not name.endswith("__")
    named = {argument.name: argument.default_value for argument in schema.arguments}
    named |= {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | dict(kwargs)
    return Call(
        func,
        name.removesuffix("_") if in_place else name,
        named,
        tuple(leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, torch.Tensor)),
        tuple(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)),
        in_place,
    )
