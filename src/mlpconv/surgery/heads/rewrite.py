"""What the operations on heads have in common: the graphs of both modes, rewritten alike, over one copy."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from mlpconv.analysis.input_shape import check_input_shape
from mlpconv.errors import MlpconvError, SurgeryError
from mlpconv.surgery.heads.find import Head, HeadValue, trace_head
from mlpconv.surgery.heads.modules import ModuleEdits
from mlpconv.surgery.heads.rewriter import Rewriter
from mlpconv.surgery.proof.accept import check_model, deep_copy
from mlpconv.surgery.tracing.graph import meta_copy, replace_module
from mlpconv.surgery.tracing.rewritten import Rewritten

__all__ = ["rewrite_head"]


def rewrite_head(
    model: nn.Module, input_shape: tuple[int, int, int], rewriter: type[Rewriter], output: int | str | None = None
) -> tuple[nn.Module, Rewritten, ModuleEdits]:
    """The network, a copy of it with another head, and what has changed.

    `output` names the logits among what the network returns. Raises SurgeryError for a head that the rewriter has no
    answer to, UsageError for an unknown output.
    """
    original, shape = check_model(model), check_input_shape(input_shape)
    shadow = meta_copy(original).eval()
    edits = ModuleEdits(deep_copy(original))
    opened: set[str] = set()
    try:
        graph, head = trace_head(shadow, shape, opened, output=output, whole=rewriter.whole)
        mine = rewriter(graph, head, shadow, edits)
        mine.run()
        _check_reads(graph, edits)
    except SurgeryError as error:
        raise SurgeryError(f"{type(original).__name__}: {error}") from error
    graphs = {"eval": graph, "maps": _ending_in(graph, mine.maps[head.scores.node])}
    _say_output(head, edits)
    names = frozenset(str(step.target) for step in head.steps if step.op == "call_module")
    edited = dict(edits.modules)
    try:
        like = HeadValue(names, edits.output)
        graph, head = trace_head(shadow.train(), shape, opened, like=like, whole=rewriter.whole)
        rewriter(graph, head, shadow, edits).run()
        _check_reads(graph, edits)
        _check_calls(graphs["eval"], edits, set(edited))
        graphs["train"] = graph
    except MlpconvError as error:
        edits.modules = edited
        edits.note(f"The new network works in eval mode only, since its training cannot be written down: {error}")
    for name, module in edits.modules.items():
        replace_module(edits.root, name, module)
    changed = Rewritten(edits.root, graphs, _constants(graphs))
    if _is_channels_last(original):
        changed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return original, changed, edits


def _say_output(head: Head, edits: ModuleEdits) -> None:
    """Note which output is taken for the logits, where the network returns several tensors."""
    edits.output = head.scores.name
    if head.alternatives:
        others = ", ".join(repr(each.name) for each in head.alternatives)
        edits.note(f"The category maps are those of output {edits.output!r}; output= chooses another: {others}.")
    elif edits.output:
        edits.note(f"The category maps are those of output {edits.output!r}.")


def _check_reads(graph: fx.Graph, edits: ModuleEdits) -> None:
    """Refuse a forward pass that reads the weights of a module that is another now: SurgeryError."""
    for node in graph.find_nodes(op="get_attr"):
        owner = str(node.target).rpartition(".")[0]
        if owner in edits.modules and not isinstance(edits.modules[owner], nn.BatchNorm2d):
            raise SurgeryError(f"{owner} is replaced, and its {str(node.target).rpartition('.')[2]} is used elsewhere.")


def _check_calls(graph: fx.Graph, edits: ModuleEdits, edited: set[str]) -> None:
    """Refuse modules that became others for training, and are called as they were in eval mode: SurgeryError."""
    for node in graph.find_nodes(op="call_module"):
        if node.target in edits.modules and node.target not in edited:
            raise SurgeryError(f"{node.target} belongs to the head in training and not in eval mode.")


def _ending_in(graph: fx.Graph, last: fx.Node) -> fx.Graph:
    """The same graph that returns another node."""
    other = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    other.graph_copy(graph, copies)
    other.output(copies[last])
    other.owning_constants = graph.owning_constants  # type: ignore[attr-defined]
    return other


def _constants(graphs: dict[str, fx.Graph]) -> dict[str, Tensor]:
    """The tensors that the forward passes made on their way, under names of their own."""
    found: dict[str, Tensor] = {}
    for mode, graph in graphs.items():
        held: dict[str, Tensor] = graph.owning_constants  # type: ignore[attr-defined]
        for node in graph.find_nodes(op="get_attr"):
            if node.target in held:
                node.target = f"{node.target}_{mode}"
                found[node.target] = held[node.target.removesuffix(f"_{mode}")]
    return found


def _is_channels_last(model: nn.Module) -> bool:
    """Whether the weights of its convolutions lie with their channels last."""
    weights = [each.weight for each in model.modules() if isinstance(each, nn.Conv2d)]
    return any(
        not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last) for weight in weights
    )
