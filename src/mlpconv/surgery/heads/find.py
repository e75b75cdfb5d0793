"""Where a network stops being a picture: the pool or the flattening, and all that follows it up to the logits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from mlpconv.errors import SurgeryError
from mlpconv.surgery.heads.outputs import Output, choose_output, ends_of, outputs_of, packed_outputs, unpack_outputs
from mlpconv.surgery.heads.pools import REDUCTIONS
from mlpconv.surgery.tracing.graph import module_of, shape_of
from mlpconv.surgery.tracing.ops import MAP, as_pair, data_inputs, describe, op_kind, op_name
from mlpconv.surgery.tracing.tracer import OpensModule, trace_graph

__all__ = ["Head", "HeadValue", "find_head", "token_reason", "trace_head"]

POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d)
TOKENS = 3
"""Dimensions of tokens (N, L, C)."""
WINDOWS = ("conv2d", "avg_pool2d", "max_pool2d", "lp_pool2d", "unfold")
THROUGH = ("elementwise", "dropout", "feature", "conv1x1", "batch_norm", "layer_norm", "softmax")


@dataclass(frozen=True)
class Head:
    """The end of a network, as steps of its graph."""

    starts: tuple[fx.Node, ...]
    """The maps (N, C, H, W) it begins with."""
    steps: tuple[fx.Node, ...]
    """Every step from there to the outputs, in order."""
    outputs: tuple[fx.Node, ...]
    """What the network returns of them."""
    scores: Output
    """The output whose maps are the category maps."""
    alternatives: tuple[Output, ...]
    """Outputs that may be meant as well."""
    ends: frozenset[fx.Node]
    """The end of the graph, and the tuples and dataclasses that are made there."""

    @property
    def outside(self) -> dict[fx.Node, list[fx.Node]]:
        """Steps whose result goes elsewhere too, with the steps that read it there; questions for a size are none."""
        steps = {*self.steps, *self.ends}
        users = {node: [each for each in node.users if each not in steps and _is_data(each)] for node in self.steps}
        return {node: readers for node, readers in users.items() if readers}


@dataclass(frozen=True)
class HeadValue:
    """What the head of the same network was in eval mode: its head in training must be the same modules."""

    modules: frozenset[str]
    output: str


def find_head(
    graph: fx.Graph,
    root: nn.Module,
    like: HeadValue | None = None,
    *,
    output: int | str | None = None,
    whole: bool = True,
) -> Head:
    """The head of a graph: back from its outputs (N, K) to the last maps, or to the maps before the last pool.

    `output` names the output that is the logits, if it cannot be told by what it is made of. If `whole`, every output
    (N, K) belongs to the head, and what else is made of its steps and is no map; otherwise the logits alone do. In
    training, heads that call no module of `like` (auxiliary ones) are left out. Raises SurgeryError where no output is
    (N, K), UsageError for an unknown `output`.
    """
    image = _from_image(graph)
    outputs = [each for each in outputs_of(graph) if each.node in image]
    behind = {each.node: _behind(each.node, root, image) for each in outputs}
    logits = [each for each in outputs if each.is_logits]
    if like is not None and like.modules:
        logits = [each for each in logits if _called(behind[each.node][0]) & like.modules]
    if not logits:
        shapes = ", ".join(map(str, outputs)) or "nothing that depends on the image"
        raise SurgeryError(f"It returns {shapes}; a network that returns logits (N, K) is accepted.")
    if like is None:
        scores, others = choose_output(outputs, lambda node: behind[node][0], root, output)
    else:
        scores, others = next((each for each in logits if each.name == like.output), logits[0]), ()
    kept = [scores.node]
    if whole or like is not None:
        missing = like.modules - _called(behind[scores.node][0]) if like is not None else frozenset()
        kept += [each.node for each in logits if whole or _called(behind[each.node][0]) & missing]
    steps = {step for node in kept for step in behind[node][0]}
    if whole:
        kept += [each.node for each in outputs if len(each.shape) != MAP and behind[each.node][0] & steps]
        steps |= {step for node in kept for step in behind[node][0]}
    starts = {start for node in kept for start in behind[node][1]} - steps
    return Head(
        tuple(node for node in graph.nodes if node in starts),
        tuple(node for node in graph.nodes if node in steps),
        tuple(dict.fromkeys(each.node for each in outputs if each.node in steps)),
        scores,
        others,
        frozenset(ends_of(graph)),
    )


def _called(steps: set[fx.Node]) -> set[str]:
    """The names of the modules that these steps call."""
    return {str(step.target) for step in steps if step.op == "call_module"}


def _is_data(node: fx.Node) -> bool:
    """Whether a step makes tensors, and not a size."""
    value = node.meta.get("val")
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _from_image(graph: fx.Graph) -> set[fx.Node]:
    """Every node that depends on the image."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(each in found for each in node.all_input_nodes):
            found.add(node)
    return found


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
    kind = op_kind(last, root)
    inputs = list(data_inputs(last, image))
    if _is_row(last) and inputs and not isinstance(inputs[0].meta["val"], Tensor) and _opens(inputs[0], root):
        return {last, inputs[0]}  # a part of what a module returns, which may have pooled it
    pooled = _on_one_cell(last, inputs, root)
    shapes = {(shape_of(each) or ())[2:] for each in (last, *inputs)}
    if kind == "pool" and not pooled:
        return {last} if len(shapes) > 1 or op_name(last, root) not in REDUCTIONS else set()
    single = pooled or kind in THROUGH or (kind == "shape" and isinstance(last.meta["val"], Tensor))
    if not inputs or not (single or kind == "join" or (kind == "open" and _could_pool(last, root, image))):
        return set()
    if kind == "open":
        return {last}
    behind = [_pooling(each, root, image) for each in inputs]
    return {last}.union(*behind) if all(behind) else set()


def _on_one_cell(node: fx.Node, inputs: list[fx.Node], root: nn.Module) -> bool:
    """Whether a step makes numbers of one cell of numbers of one cell, without a window that is only cut short here."""
    module = module_of(node, root)
    if module is not None:
        windows = as_pair(getattr(module, "kernel_size", 1)) != (1, 1)
    else:
        windows = op_name(node, root) in WINDOWS
    return not windows and all(_is_row(each) for each in (node, *inputs))


def _is_row(node: fx.Node) -> bool:
    """Whether an image has one cell at this step, wherever its channels lie."""
    shape = (shape_of(node) or ())[1:]
    return bool(shape) and math.prod(shape) == max(shape)


def _opens(node: fx.Node, root: nn.Module) -> bool:
    return node.op == "call_module" and op_kind(node, root) == "open"


def _turning(last: fx.Node, root: nn.Module) -> set[fx.Node]:
    """The steps before this node that only turn maps (N, C, H, W) about; empty where the maps lie otherwise."""
    found: list[fx.Node] = []
    here = last
    while op_kind(here, root) == "shape" and len(shape_of(here.all_input_nodes[0]) or ()) == MAP:
        found.append(here)
        here = here.all_input_nodes[0]
    return set() if op_kind(here, root) in ("linear", "layer_norm") else set(found)


def _could_pool(node: fx.Node, root: nn.Module, image: set[fx.Node]) -> bool:
    """Whether a module that has not been looked into may hold the last pool, or stand between it and the logits."""
    shape = shape_of(node) or ()
    if shape[2:] == (1, 1):
        return True
    before = [shape_of(each) or () for each in data_inputs(node, image)]
    holds = any(isinstance(each, POOLING) for each in root.get_submodule(str(node.target)).modules())
    return holds and not any(each[2:] == shape[2:] for each in before)


def trace_head(
    shadow: nn.Module,
    input_shape: tuple[int, int, int],
    opened: set[str],
    *,
    like: HeadValue | None = None,
    output: int | str | None = None,
    whole: bool = True,
) -> tuple[fx.Graph, Head]:
    """The graph of a network in which no more is looked into than its head needs, and that head (see `find_head`).

    The rest stays as it is, module by module, with its own modes and forwards. `opened` is filled with the names.
    Raises SurgeryError where a part of the head cannot be written down.
    """
    while True:
        graph = trace_graph(shadow, input_shape, _inside(opened))
        inner = {name for each in packed_outputs(graph, shadow) for name in _path(each)}
        if inner - opened:
            opened |= inner
            continue
        unpack_outputs(graph)
        head = find_head(graph, shadow, like, output=output, whole=whole)
        shut = set(_shut(head, shadow))
        if not shut:
            return graph, head
        again = shut & opened
        if again:
            tokens = token_reason(head, shadow)
            if tokens:
                raise SurgeryError(tokens)
            name = min(again)
            kind = type(shadow.get_submodule(name)).__name__
            why = graph.refusals[name]  # type: ignore[attr-defined]
            raise SurgeryError(f"{name} ({kind}) is a part of the head, and its forward pass cannot be traced: {why}.")
        opened |= {name for each in shut for name in _path(each)}


def token_reason(head: Head, root: nn.Module) -> str:
    """That a network goes on in tokens (N, L, C) after its last maps, as a sentence; empty if it does not."""
    for node in head.steps:
        read = [shape_of(each) or () for each in node.all_input_nodes if each.op != "get_attr"]
        shape = shape_of(node) or ()
        idle = op_kind(node, root) in ("shape", "pool", "elementwise", "dropout", "feature")
        if not idle and len(shape) == TOKENS and 1 not in shape[1:] and any(len(each) == TOKENS for each in read):
            return (
                f"{describe(node, root)} works on tokens (N, {shape[1]}, {shape[2]}); networks that have maps "
                "(N, C, H, W) until their last pool or flattening are accepted. For this one there are fold, deepen "
                "and factorize."
            )
    return ""


def _inside(names: set[str]) -> OpensModule:
    """Look into the modules of these names."""
    return lambda name, _: name in names


def _shut(head: Head, root: nn.Module) -> Iterator[str]:
    for node in head.steps:
        if _opens(node, root):
            yield str(node.target)


def _path(name: str) -> list[str]:
    """The names of a module and of all that it is inside of."""
    parts = name.split(".")
    return [".".join(parts[: length + 1]) for length in range(len(parts))]
