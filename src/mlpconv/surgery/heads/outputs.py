"""Name the outputs of a network, and choose the one that holds the class logits."""

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
"""Number of dimensions of logits (N, K)."""


@dataclass(frozen=True)
class Output:
    """A tensor returned by a network."""

    name: str
    """Its path in the returned value, such as "1", "logits" or "out.logits"; empty for a single output."""
    node: fx.Node

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape for a batch of two images."""
        return tuple(self.node.meta["val"].shape)

    @property
    def is_logits(self) -> bool:
        """Whether the tensor is (N, K) and floating point."""
        return len(self.shape) == ROWS and self.node.meta["val"].is_floating_point()

    def __str__(self) -> str:
        shape = ", ".join(["N", *map(str, self.shape[1:])])
        return f"{self.name} ({shape})" if self.name else f"({shape})"


def ends_of(graph: fx.Graph) -> list[fx.Node]:
    """Return the output node and the constructors of tuples and dataclasses that wrap the returned tensors."""
    ends = [graph.output_node()]
    for end in ends:
        ends += [node for node in end.all_input_nodes if isinstance(node.target, type)]
    return ends


def outputs_of(graph: fx.Graph) -> list[Output]:
    """Return all tensors that the network returns, in order."""
    ends = ends_of(graph)
    returned = [node for end in ends for node in end.all_input_nodes if node not in ends]
    by_value: dict[int, list[fx.Node]] = {}
    for node in dict.fromkeys(returned):
        by_value.setdefault(id(node.meta.get("val")), []).append(node)
    outputs = []
    for name, tensor in flat_tensors(_value(graph.output_node().args[0], ends)):
        nodes = by_value.get(id(tensor), [])
        if nodes:  # dropout in eval mode returns its input: two nodes share one value
            outputs.append(Output(name, nodes.pop(0) if len(nodes) > 1 else nodes[0]))
    return outputs


def _value(returned: Any, ends: Sequence[fx.Node]) -> Any:
    """Return the value of an end of the graph for a batch of two images."""

    def value(node: fx.Node) -> Any:
        if node not in ends:
            return node.meta.get("val")
        return node.target(*_value(node.args, ends), **_value(node.kwargs, ends))  # type: ignore[operator]

    return fx.map_arg(returned, value)


def packed_outputs(graph: fx.Graph, root: nn.Module) -> list[str]:
    """Return the modules that return several network outputs at once and must be traced."""
    return [str(node.target) for node in _packs(graph) if op_kind(node, root) == "open"]


def unpack_outputs(graph: fx.Graph) -> None:
    """Replace a tuple that a step passes on, as in `cat(x.chunk(2))` or an output, by its individual tensors."""
    for pack in list(graph.nodes):
        value = pack.meta.get("val")
        users = [user for user in pack.users if user.target not in (operator.getitem, getattr)]
        if not users or not isinstance(value, tuple | list) or not all(isinstance(item, Tensor) for item in value):
            continue
        with graph.inserting_before(pack.next):
            parts = [graph.call_function(operator.getitem, (pack, index)) for index in range(len(value))]
        for part, tensor in zip(parts, value, strict=True):
            part.meta.update(pack.meta, val=tensor)
        substitute = _substitution(pack, parts if isinstance(value, list) else tuple(parts))
        for user in users:
            user.args, user.kwargs = fx.map_arg(user.args, substitute), fx.map_arg(user.kwargs, substitute)


def _substitution(old: fx.Node, new: Any) -> Callable[[fx.Node], Any]:
    return lambda node: new if node is old else node


def _packs(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the steps whose returned result contains tensors but is not a tensor."""
    ends = ends_of(graph)
    for node in dict.fromkeys(node for end in ends for node in end.all_input_nodes if node not in ends):
        value = node.meta.get("val")
        if not isinstance(value, Tensor | int | float | bool | str | None):
            yield node


def choose_output(
    outputs: Sequence[Output],
    steps_to: Callable[[fx.Node], set[fx.Node]],
    root: nn.Module,
    output: int | str | None,
) -> tuple[Output, tuple[Output, ...]]:
    """Return the logits (N, K) among the outputs, and the other candidates.

    `output` selects one by name or index. Otherwise outputs that feed other outputs are excluded: features, whose
    linear layers are a proper subset of another output's, and outputs computed from a candidate without further linear
    layers, such as a softmax of the logits. Raises UsageError for an unknown output.
    """
    logits = [out for out in outputs if out.is_logits]
    if output is not None:
        return _select(outputs, output), ()
    layers = {out.node: frozenset(step for step in steps_to(out.node) if _is_linear(step, root)) for out in logits}
    deepest = [out for out in logits if not any(layers[out.node] < deeper for deeper in layers.values())]
    nodes = {out.node for out in deepest}
    candidates = [out for out in deepest if not steps_to(out.node) & nodes - {out.node}]
    return candidates[0], tuple(candidates[1:])


def _is_linear(step: fx.Node, root: nn.Module) -> bool:
    """Return whether a step combines all channels as a linear layer does, or may contain such a step."""
    return op_kind(step, root) in ("linear", "conv1x1", "open") or op_name(step, root) in PRODUCTS


def _select(outputs: Sequence[Output], key: int | str) -> Output:
    """Return the output with this name or index; raise UsageError if there is none or it is not (N, K)."""
    matches = [out for out in outputs if out.name == str(key)]
    index = int(key) if str(key).lstrip("-").isdecimal() else None
    if not matches and index is not None and -len(outputs) <= index < len(outputs):
        matches = [outputs[index]]
    if matches and matches[0].is_logits:
        return matches[0]
    problem = f"is {matches[0]}, which is not (N, K)" if matches else "is not an output of the network"
    logits = [str(out) for out in outputs if out.is_logits and out.name]
    accepted = f"accepted: {', '.join(logits)}" if logits else "the network has one output, which needs no name"
    raise UsageError(f"output={key!r} {problem}; {accepted}.")
