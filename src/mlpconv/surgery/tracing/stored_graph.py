"""Store graphs as plain lists of steps, which can be copied and pickled at any length."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

from torch import fx
from torch._ops import OpOverload, OpOverloadPacket

__all__ = ["StoredStep", "restore_graph", "store_graph"]


class StoredStep(NamedTuple):
    """A node of a graph, without its neighbours."""

    op: str
    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """The output of another node, by the node's name."""

    name: str


@dataclass(frozen=True)
class NamedObject:
    """A function by its import path, because some of PyTorch's functions cannot be pickled."""

    module: str
    path: str

    def function(self) -> Any:
        """Return the function."""
        return reduce(getattr, self.path.split("."), importlib.import_module(self.module))


def store_graph(graph: fx.Graph) -> list[StoredStep]:
    """Return the steps of a graph."""
    return [
        StoredStep(
            node.op,
            node.name,
            _by_name(node.target),
            _referring(node.args),
            _referring(node.kwargs),
        )
        for node in graph.nodes
    ]


def restore_graph(steps: Sequence[StoredStep]) -> fx.Graph:
    """Return the graph of these steps."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def known(value: Any) -> Any:
        return nodes[value.name] if isinstance(value, Reference) else value

    for step in steps:
        args: Any = fx.node.map_aggregate(step.args, known)
        kwargs: Any = fx.node.map_aggregate(step.kwargs, known)
        target = step.target.function() if isinstance(step.target, NamedObject) else step.target
        nodes[step.name] = graph.create_node(step.op, target, args, kwargs, step.name)
    return graph


def _referring(arguments: Any) -> Any:
    """Replace nodes in arguments by references."""

    def reference(node: fx.Node) -> Any:
        return Reference(node.name)

    return fx.map_arg(arguments, reference)


def _by_name(target: Any) -> Any:
    """Return a function as its import path; unchanged if it has none."""
    if isinstance(target, OpOverload | OpOverloadPacket):
        return NamedObject("torch", f"ops.{target}")
    named = NamedObject(getattr(target, "__module__", None) or "", getattr(target, "__name__", None) or "")
    try:
        return named if named.function() is target else target
    except (AttributeError, ImportError, ValueError):
        return target
