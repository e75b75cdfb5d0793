"""Find the head of a network: the last pool or flattening and every step from there to the logits."""

from __future__ import annotations

import math
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
"""Number of dimensions of tokens (N, L, C)."""
WINDOWS = ("conv2d", "avg_pool2d", "max_pool2d", "lp_pool2d", "unfold")
THROUGH = ("elementwise", "dropout", "feature", "conv1x1", "batch_norm", "layer_norm", "softmax")


@dataclass(frozen=True)
class Head:
    """The head of a network as steps of its graph."""

    starts: tuple[fx.Node, ...]
    """The feature maps (N, C, H, W) at which the head starts."""
    steps: tuple[fx.Node, ...]
    """All steps from these maps to the outputs, in graph order."""
    outputs: tuple[fx.Node, ...]
    """The steps that are network outputs."""
    scores: Output
    """The output whose maps are the category maps."""
    alternatives: tuple[Output, ...]
    """Other candidates for the logits."""
    ends: frozenset[fx.Node]
    """The output node, and the constructors of tuples and dataclasses that feed it."""

    @property
    def outside(self) -> dict[fx.Node, list[fx.Node]]:
        """Steps of the head that steps outside it also read, with these readers; size queries do not count."""
        steps = {*self.steps, *self.ends}
        readers = {node: [user for user in node.users if user not in steps and _is_data(user)] for node in self.steps}
        return {node: users for node, users in readers.items() if users}


@dataclass(frozen=True)
class HeadValue:
    """The head in eval mode; the head in training mode must call the same modules."""

    modules: frozenset[str]
    output: str


def find_head(
    graph: fx.Graph,
    root: nn.Module,
    like: HeadValue | None = None,
    *,
    output: int | str | None = None,
    all_outputs: bool = True,
) -> Head:
    """Return the head of a graph, from its outputs (N, K) back to the last maps or the maps before the last pool.

    `output` selects the logits; by default they are inferred. With `all_outputs`, the head includes every output
    (N, K) and every other output computed from its steps, except maps; otherwise only the logits. In training mode,
    auxiliary heads, which call no module of `like`, are excluded.

    Raises SurgeryError if no output is (N, K), UsageError for an unknown `output`.
    """
    image = _from_image(graph)
    outputs = [out for out in outputs_of(graph) if out.node in image]
    paths = {out.node: _steps_to(out.node, root, image) for out in outputs}
    logits = [out for out in outputs if out.is_logits]
    if like is not None and like.modules:
        logits = [out for out in logits if _called(paths[out.node][0]) & like.modules]
    if not logits:
        shapes = ", ".join(map(str, outputs)) or "nothing that depends on the image"
        raise SurgeryError(f"The network returns {shapes}; logits (N, K) are accepted.")
    if like is None:
        scores, alternatives = choose_output(outputs, lambda node: paths[node][0], root, output)
    else:
        scores, alternatives = next((out for out in logits if out.name == like.output), logits[0]), ()
    nodes = [scores.node]
    if all_outputs or like is not None:
        missing = like.modules - _called(paths[scores.node][0]) if like is not None else frozenset()
        nodes += [out.node for out in logits if all_outputs or _called(paths[out.node][0]) & missing]
    steps = {step for node in nodes for step in paths[node][0]}
    if all_outputs:
        nodes += [out.node for out in outputs if len(out.shape) != MAP and paths[out.node][0] & steps]
        steps |= {step for node in nodes for step in paths[node][0]}
    starts = {start for node in nodes for start in paths[node][1]} - steps
    return Head(
        tuple(node for node in graph.nodes if node in starts),
        tuple(node for node in graph.nodes if node in steps),
        tuple(dict.fromkeys(out.node for out in outputs if out.node in steps)),
        scores,
        alternatives,
        frozenset(ends_of(graph)),
    )


def _called(steps: set[fx.Node]) -> set[str]:
    """Return the names of the modules that these steps call."""
    return {str(step.target) for step in steps if step.op == "call_module"}


def _is_data(node: fx.Node) -> bool:
    """Return whether a step returns tensors, as opposed to sizes."""
    value = node.meta.get("val")
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _from_image(graph: fx.Graph) -> set[fx.Node]:
    """Return all nodes that depend on the image."""
    dependent: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in dependent for source in node.all_input_nodes):
            dependent.add(node)
    return dependent


def _steps_to(node: fx.Node, root: nn.Module, image: set[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """Return the steps from the last maps to this node, and these maps."""
    steps: set[fx.Node] = set()
    last_maps: set[fx.Node] = set()
    stack = [node]
    while stack:
        step = stack.pop()
        if step in steps or step in last_maps:
            continue
        if len(shape_of(step) or ()) == MAP or step.op == "placeholder":
            last_maps.add(step)
            continue
        steps.add(step)
        stack += data_inputs(step, image)
    starts: set[fx.Node] = set()
    for last in last_maps:
        pooled = set() if _is_pooled(last, steps, root) else _steps_from_pool(last, root, image)
        pooled = pooled or _permutes(last, root)
        steps |= pooled
        starts |= {source for step in pooled for source in data_inputs(step, image) if source not in pooled} or {last}
    return steps, starts - steps


def _steps_from_pool(last: fx.Node, root: nn.Module, image: set[fx.Node]) -> set[fx.Node]:
    """Return the last pool and the per-cell steps from it to this node; empty if there is no such pool."""
    if last.op == "placeholder":
        return set()
    kind = op_kind(last, root)
    inputs = list(data_inputs(last, image))
    if _is_row(last) and inputs and not isinstance(inputs[0].meta["val"], Tensor) and _opens(inputs[0], root):
        return {last, inputs[0]}  # one output of a module that may have pooled it
    pooled = _on_one_cell(last, inputs, root)
    shapes = {(shape_of(step) or ())[2:] for step in (last, *inputs)}
    if kind == "pool" and not pooled:
        return {last} if len(shapes) > 1 or op_name(last, root) not in REDUCTIONS else set()
    single = pooled or kind in THROUGH or (kind == "shape" and isinstance(last.meta["val"], Tensor))
    if not inputs or not (single or kind == "join" or (kind == "open" and _could_pool(last, root, image))):
        return set()
    if kind == "open":
        return {last}
    paths = [_steps_from_pool(source, root, image) for source in inputs]
    if all(paths):
        return {last}.union(*paths)
    # A pool of a single cell is the head's all the same: on a larger image it has more to pool.
    return {last} if kind == "pool" and op_name(last, root) not in REDUCTIONS else set()


def _is_pooled(maps: fx.Node, steps: set[fx.Node], root: nn.Module) -> bool:
    """Return whether one of these steps pools the maps, directly or after steps that only move elements."""
    waiting = [maps]
    while waiting:
        for user in waiting.pop().users:
            kind = op_kind(user, root) if user in steps else ""
            if kind == "pool":
                return True
            if kind == "shape":
                waiting.append(user)
    return False


def _on_one_cell(node: fx.Node, inputs: list[fx.Node], root: nn.Module) -> bool:
    """Return whether a step maps one cell to one cell, without a window that only this image size cuts off."""
    module = module_of(node, root)
    if module is not None:
        windows = as_pair(getattr(module, "kernel_size", 1)) != (1, 1)
    else:
        windows = op_name(node, root) in WINDOWS
    return not windows and all(_is_row(step) for step in (node, *inputs))


def _is_row(node: fx.Node) -> bool:
    """Return whether an image has one cell at this step, whatever the dimension of the channels."""
    shape = (shape_of(node) or ())[1:]
    return bool(shape) and math.prod(shape) == max(shape)


def _opens(node: fx.Node, root: nn.Module) -> bool:
    return node.op == "call_module" and op_kind(node, root) == "open"


def _permutes(last: fx.Node, root: nn.Module) -> set[fx.Node]:
    """Return the steps before this node that only permute maps (N, C, H, W); empty for channels-last networks."""
    permutes: set[fx.Node] = set()
    step = last
    while op_kind(step, root) == "shape" and len(shape_of(step.all_input_nodes[0]) or ()) == MAP:
        permutes.add(step)
        step = step.all_input_nodes[0]
    return set() if op_kind(step, root) in ("linear", "layer_norm") else permutes


def _could_pool(node: fx.Node, root: nn.Module, image: set[fx.Node]) -> bool:
    """Return whether an untraced module may contain the last pool or lie between it and the logits."""
    shape = shape_of(node) or ()
    if shape[2:] == (1, 1):
        return True
    inputs = [shape_of(source) or () for source in data_inputs(node, image)]
    has_pool = any(isinstance(module, POOLING) for module in root.get_submodule(str(node.target)).modules())
    return has_pool and not any(size[2:] == shape[2:] for size in inputs)


def trace_head(
    shadow: nn.Module,
    input_shape: tuple[int, int, int],
    opened: set[str],
    *,
    like: HeadValue | None = None,
    output: int | str | None = None,
    all_outputs: bool = True,
) -> tuple[fx.Graph, Head]:
    """Trace a network and return its graph and its head (see `find_head`); only modules of the head are traced.

    Every other module stays one node, with its own mode and forward. The names of traced modules are added to `opened`.
    Raises SurgeryError if a module of the head cannot be traced.
    """
    while True:
        graph = trace_graph(shadow, input_shape, _opens_named(opened))
        inner = {name for output_name in packed_outputs(graph, shadow) for name in _path(output_name)}
        if inner - opened:
            opened |= inner
            continue
        unpack_outputs(graph)
        head = find_head(graph, shadow, like, output=output, all_outputs=all_outputs)
        untraced = {str(node.target) for node in head.steps if _opens(node, shadow)}
        if not untraced:
            return graph, head
        refused = untraced & opened
        if refused:
            tokens = token_reason(head, shadow)
            if tokens:
                raise SurgeryError(tokens)
            name = min(refused)
            kind = type(shadow.get_submodule(name)).__name__
            reason = graph.refusals[name]  # type: ignore[attr-defined]
            raise SurgeryError(
                f"{name} ({kind}) is a part of the head, and its forward pass cannot be traced: {reason}."
            )
        opened |= {name for module_name in untraced for name in _path(module_name)}


def token_reason(head: Head, root: nn.Module) -> str:
    """Return an error message if the network works on tokens (N, L, C) after its last maps, else an empty string."""
    for node in head.steps:
        inputs = [shape_of(source) or () for source in node.all_input_nodes if source.op != "get_attr"]
        shape = shape_of(node) or ()
        neutral = op_kind(node, root) in ("shape", "pool", "elementwise", "dropout", "feature")
        if not neutral and len(shape) == TOKENS and 1 not in shape[1:] and any(len(size) == TOKENS for size in inputs):
            return (
                f"{describe(node, root)} works on tokens (N, {shape[1]}, {shape[2]}); networks with feature maps "
                "(N, C, H, W) up to their last pool or flattening are accepted. Use fold, deepen or factorize for this "
                "network."
            )
    return ""


def _opens_named(names: set[str]) -> OpensModule:
    """Return a predicate that traces the modules with these names."""
    return lambda name, _: name in names


def _path(name: str) -> list[str]:
    """Return the names of a module and of its parents."""
    parts = name.split(".")
    return [".".join(parts[: length + 1]) for length in range(len(parts))]
