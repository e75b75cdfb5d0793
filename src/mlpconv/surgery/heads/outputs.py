"""What a network returns, by name, and which output is the logits of the classes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from mlpconv.errors import UsageError
from mlpconv.surgery.proof.compare import flat_tensors
from mlpconv.surgery.tracing.ops import op_kind, op_name

__all__ = ["Output", "choose_output", "ends_of", "outputs_of", "packed_outputs", "unpack_outputs"]

PRODUCTS = ("matmul", "mm", "addmm", "einsum", "bilinear")
ROWS = 2
"""Dimensions of logits (N, K)."""


@dataclass(frozen=True)
class Output:
    """A tensor that a network returns."""

    name: str
    """Its place in what is returned, such as "1", "logits" or "out.logits"; empty for a network of one output."""
    node: fx.Node

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a batch of two."""
        return tuple(self.node.meta["val"].shape)

    @property
    def is_logits(self) -> bool:
        """Whether it is (N, K) and of floats."""
        return len(self.shape) == ROWS and self.node.meta["val"].is_floating_point()

    def __str__(self) -> str:
        shape = ", ".join(["N", *map(str, self.shape[1:])])
        return f"{self.name} ({shape})" if self.name else f"({shape})"


def ends_of(graph: fx.Graph) -> list[fx.Node]:
    """The end of the graph, and the constructors of tuples and dataclasses that only wrap what is returned."""
    ends = [graph.output_node()]
    for end in ends:
        ends += [node for node in end.all_input_nodes if isinstance(node.target, type)]
    return ends


def outputs_of(graph: fx.Graph) -> list[Output]:
    """Every tensor that the network returns, in order."""
    ends = ends_of(graph)
    read = [node for end in ends for node in end.all_input_nodes if node not in ends]
    by_value: dict[int, list[fx.Node]] = {}
    for node in dict.fromkeys(read):
        by_value.setdefault(id(node.meta.get("val")), []).append(node)
    outputs = []
    for name, tensor in flat_tensors(_value(graph.output_node().args[0], ends)):
        nodes = by_value.get(id(tensor), [])
        if nodes:  # dropout in eval mode gives the very tensor that it was given: two nodes, one value
            outputs.append(Output(name, nodes.pop(0) if len(nodes) > 1 else nodes[0]))
    return outputs


def _value(returned: Any, ends: Sequence[fx.Node]) -> Any:
    """What an end of the graph makes of a batch of two."""

    def value(node: fx.Node) -> Any:
        if node not in ends:
            return node.meta.get("val")
        return node.target(*_value(node.args, ends), **_value(node.kwargs, ends))  # type: ignore[operator]

    return fx.map_arg(returned, value)


def packed_outputs(graph: fx.Graph, root: nn.Module) -> list[str]:
    """Modules that return several tensors as the network's own outputs: they must be opened."""
    return [str(node.target) for node in _packs(graph) if op_kind(node, root) == "open"]


def unpack_outputs(graph: fx.Graph) -> None:
    """Hand on the parts of a tuple that one step makes where it is returned or an argument, as in `cat(x.chunk(2))`."""
    for pack in list(graph.nodes):
        value = pack.meta.get("val")
        readers = [user for user in pack.users if user.target not in (operator.getitem, getattr)]
        if not readers or not isinstance(value, tuple | list) or not all(isinstance(each, Tensor) for each in value):
            continue
        with graph.inserting_before(pack.next):
            parts = [graph.call_function(operator.getitem, (pack, place)) for place in range(len(value))]
        for part, held in zip(parts, value, strict=True):
            part.meta.update(pack.meta, val=held)
        put = _put(pack, parts if isinstance(value, list) else tuple(parts))
        for user in readers:
            user.args, user.kwargs = fx.map_arg(user.args, put), fx.map_arg(user.kwargs, put)


def _put(old: fx.Node, new: Any) -> Callable[[fx.Node], Any]:
    return lambda node: new if node is old else node


def _packs(graph: fx.Graph) -> Iterator[fx.Node]:
    """Steps whose result is returned and holds tensors without being one."""
    ends = ends_of(graph)
    for node in dict.fromkeys(node for end in ends for node in end.all_input_nodes if node not in ends):
        value = node.meta.get("val")
        if not isinstance(value, Tensor | int | float | bool | str | None):
            yield node


def choose_output(
    outputs: Sequence[Output],
    behind: Callable[[fx.Node], set[fx.Node]],
    root: nn.Module,
    output: int | str | None,
) -> tuple[Output, tuple[Output, ...]]:
    """The logits (N, K) among all outputs, and the other outputs that may be meant as well.

    With `output`, the output of this name or place. Otherwise features that logits are made of are no logits: an output
    is left out if another one has gone through all its linear layers and more. So is an output that is made of another
    one without more of them, such as a softmax of logits. Raises UsageError for an unknown output.
    """
    logits = [each for each in outputs if each.is_logits]
    if output is not None:
        return _named(outputs, output), ()
    passed = {each.node: frozenset(step for step in behind(each.node) if _mixes(step, root)) for each in logits}
    left = [each for each in logits if not any(passed[each.node] < other for other in passed.values())]
    nodes = {each.node for each in left}
    first = [each for each in left if not behind(each.node) & nodes - {each.node}]
    return first[0], tuple(first[1:])


def _mixes(step: fx.Node, root: nn.Module) -> bool:
    """Whether a step makes new numbers of all channels, as a linear layer does, or may."""
    return op_kind(step, root) in ("linear", "conv1x1", "open") or op_name(step, root) in PRODUCTS


def _named(outputs: Sequence[Output], wanted: int | str) -> Output:
    """The output of this name or place; UsageError for one that is not there, or is no logits."""
    matches = [each for each in outputs if each.name == str(wanted)]
    place = int(wanted) if str(wanted).lstrip("-").isdecimal() else None
    if not matches and place is not None and -len(outputs) <= place < len(outputs):
        matches = [outputs[place]]
    if matches and matches[0].is_logits:
        return matches[0]
    which = f"{matches[0]}, which is not (N, K)" if matches else "no output of the network"
    logits = [str(each) for each in outputs if each.is_logits and each.name]
    accepted = f"accepted are {', '.join(logits)}" if logits else "the network has one output, which needs no name"
    raise UsageError(f"output={wanted!r} is {which}; {accepted}.")
