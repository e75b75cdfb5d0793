"""An operation of a forward pass with its arguments by name."""

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
    """An ATen operation that has run, with its arguments and outputs."""

    func: OpOverload
    name: str
    """Name without namespace, overload and the underscore of in-place operations: "convolution", "add"."""
    args: Mapping[str, Any]
    """Every argument by its name in the schema, including defaults."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    in_place: bool

    def __getitem__(self, argument: str) -> Any:
        return self.args[argument]

    def tensor(self, *names: str) -> Tensor:
        """Return the first tensor among the arguments with these names."""
        return next(value for name in names if isinstance(value := self.args.get(name), Tensor))

    def sizes(self, argument: str, count: int, default: int = 1) -> list[int]:
        """Return a size argument as one integer per spatial dimension: [3] is repeated, [] means the default."""
        sizes = [int(number) for number in self.args.get(argument) or [default]]
        return sizes * count if len(sizes) == 1 else sizes

    def dims(self, argument: str = "dim") -> list[int]:
        """Return a dimension argument as negative dimensions; all dimensions if it is None or empty."""
        rank = self.inputs[0].dim()
        dims = self.args.get(argument)
        if dims is None or dims == []:
            return list(range(-rank, 0))
        return [dim if dim < 0 else dim - rank for dim in (dims if isinstance(dims, list | tuple) else [dims])]


def bind(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Call:
    """Return the call, with its arguments by their names in the operation's schema."""
    schema = func._schema
    name = schema.name.split("::")[-1]
    in_place = name.endswith("_") and not name.endswith("__")
    values = {argument.name: argument.default_value for argument in schema.arguments}
    values |= {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | dict(kwargs)
    return Call(
        func,
        name.removesuffix("_") if in_place else name,
        values,
        tuple(leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, torch.Tensor)),
        tuple(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)),
        in_place,
    )
