"""Where a network stops being a picture: the pool or the flattening, and all that follows it up to the logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, fx, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.graph import shape_of
from mlpconv.surgery.spelling import MAP, data_inputs, describe, kind_of
from mlpconv.surgery.tracer import Opens, record

__all__ = ["Head", "find_head", "on_tokens", "opened_graph"]

POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d)
TOKENS = 3
"""Dimensions of tokens (N, L, C)."""
THROUGH = ("elementwise", "dropout", "feature", "conv1x1", "batch_norm", "layer_norm", "softmax")


@dataclass(frozen=True)
class Head:
    """The end of a network, as steps of its graph."""

    starts: tuple[fx.Node, ...]
    """The maps (N, C, H, W) it begins with."""
    steps: tuple[fx.Node, ...]
    """Every step from there to the logits, in order."""
    logits: tuple[fx.Node, ...]
    """What the network returns of them."""
    returned_by: frozenset[fx.Node]
    """The end of the graph, and the tuples and dataclasses that are made there."""


def find_head(graph: fx.Graph, root: nn.Module, only: frozenset[str] | None = None) -> Head:
    """The head of a graph: back from its outputs (N, K) to the last maps, or to the maps before the last pool.

    With `only`, heads that call none of these modules (auxiliary ones, in training) are left out. Raises SurgeryError
    where no output is of this shape.
    """
    image = _from_image(graph)
    ends = _ends(graph)
    outputs = [node for end in ends for node in end.all_input_nodes if node in image and node not in ends]
    logits = [node for node in outputs if _is_float(node) and len(shape_of(node) or ()) == 2]
    steps: set[fx.Node] = set()
    starts: set[fx.Node] = set()
    kept = []
    for node in logits:
        behind, begins = _behind(node, root, image)
        if only is None or any(str(step.target) in only for step in behind if step.op == "call_module"):
            kept.append(node)
            steps |= behind
            starts |= begins
    if not kept:
        shapes = [("N", *(shape_of(node) or ())[1:]) for node in outputs]
        raise SurgeryError(f"It returns {shapes}; a network that returns logits (N, K) is accepted.")
    ordered = tuple(node for node in graph.nodes if node in steps)
    return Head(tuple(node for node in graph.nodes if node in starts), ordered, tuple(kept), frozenset(ends))


def _ends(graph: fx.Graph) -> list[fx.Node]:
    """The end of the graph, and what only wraps what is returned: constructors of tuples and dataclasses."""
    found = [graph.output_node()]
    for end in found:
        found += [node for node in end.all_input_nodes if isinstance(node.target, type)]
    return found


def _from_image(graph: fx.Graph) -> set[fx.Node]:
    """Every node that depends on the image."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(each in found for each in node.all_input_nodes):
            found.add(node)
    return found


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _behind(node: fx.Node, root: nn.Module, image: set[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """The steps from the last maps to this node, and those maps."""
    steps: set[fx.Node] = set()
    lasts: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        here = waiting.pop()
        if here in steps or here in lasts:
            continue
        if len(shape_of(here) or ()) == MAP or here.op == "placeholder":
            lasts.add(here)
            continue
        steps.add(here)
        waiting += data_inputs(here, image)
    starts: set[fx.Node] = set()
    for last in lasts:
        pooled = _pooling(last, root, image) or _turning(last, root)
        steps |= pooled
        starts |= {each for step in pooled for each in data_inputs(step, image) if each not in pooled} or {last}
    return steps, starts - steps


def _pooling(last: fx.Node, root: nn.Module, image: set[fx.Node]) -> set[fx.Node]:
    """The last pool and the steps after it up to here, which all work on each cell by itself; empty without one."""
    if last.op == "placeholder":
        return set()
    kind = kind_of(last, root)
    if kind == "pool":
        return {last}
    inputs = list(data_inputs(last, image))
    single = kind in THROUGH or (kind == "shape" and isinstance(last.meta["val"], Tensor))
    if not inputs or not (single or kind == "join" or (kind == "open" and _could_pool(last, root, image))):
        return set()
    if kind == "open":
        return {last}
    behind = [_pooling(each, root, image) for each in inputs]
    return {last}.union(*behind) if all(behind) else set()


def _turning(last: fx.Node, root: nn.Module) -> set[fx.Node]:
    """The steps before this node that only turn maps (N, C, H, W) about; empty where the maps lie otherwise."""
    found: list[fx.Node] = []
    here = last
    while kind_of(here, root) == "shape" and len(shape_of(here.all_input_nodes[0]) or ()) == MAP:
        found.append(here)
        here = here.all_input_nodes[0]
    return set() if kind_of(here, root) in ("linear", "layer_norm") else set(found)


def _could_pool(node: fx.Node, root: nn.Module, image: set[fx.Node]) -> bool:
    """Whether a module that has not been looked into may hold the last pool, or stand between it and the logits."""
    shape = shape_of(node) or ()
    if shape[2:] == (1, 1):
        return True
    before = [shape_of(each) or () for each in data_inputs(node, image)]
    holds = any(isinstance(each, POOLING) for each in root.get_submodule(str(node.target)).modules())
    return holds and not any(each[2:] == shape[2:] for each in before)


def opened_graph(
    shadow: nn.Module, input_shape: tuple[int, int, int], opened: set[str], *, only: frozenset[str] | None = None
) -> tuple[fx.Graph, Head]:
    """The graph of a network in which no more is looked into than its head needs, and that head.

    The rest stays as it is, module by module, with its own modes and forwards. `opened` is filled with the names.
    Raises SurgeryError where a part of the head cannot be written down.
    """
    while True:
        graph = record(shadow, input_shape, _inside(opened))
        head = find_head(graph, shadow, only)
        shut = set(_shut(head, shadow))
        if not shut:
            return graph, head
        again = shut & opened
        if again:
            tokens = on_tokens(head, shadow)
            if tokens:
                raise SurgeryError(tokens)
            name = min(again)
            kind = type(shadow.get_submodule(name)).__name__
            why = graph.refusals[name]  # type: ignore[attr-defined]
            raise SurgeryError(f"{name} ({kind}) is a part of the head, and its forward pass cannot be traced: {why}.")
        opened |= {name for each in shut for name in _path(each)}


def on_tokens(head: Head, root: nn.Module) -> str:
    """That a network goes on in tokens (N, L, C) after its last maps, as a sentence; empty if it does not."""
    for node in head.steps:
        read = [shape_of(each) or () for each in node.all_input_nodes if each.op != "get_attr"]
        shape = shape_of(node) or ()
        idle = kind_of(node, root) in ("shape", "pool", "elementwise", "dropout", "feature")
        if not idle and len(shape) == TOKENS and any(len(each) == TOKENS for each in read):
            return (
                f"{describe(node, root)} works on tokens (N, {shape[1]}, {shape[2]}); networks that have maps "
                "(N, C, H, W) until their last pool or flattening are accepted. For this one there are fold, deepen "
                "and bottleneck."
            )
    return ""


def _inside(names: set[str]) -> Opens:
    """Look into the modules of these names."""
    return lambda name, _: name in names


def _shut(head: Head, root: nn.Module) -> Iterator[str]:
    for node in head.steps:
        if node.op == "call_module" and kind_of(node, root) == "open":
            yield str(node.target)


def _path(name: str) -> list[str]:
    """The names of a module and of all that it is inside of."""
    parts = name.split(".")
    return [".".join(parts[: length + 1]) for length in range(len(parts))]
