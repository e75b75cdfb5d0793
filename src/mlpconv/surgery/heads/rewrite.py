"""Rewrite the head in the eval graph and the training graph of a network, on one copy of its modules."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from mlpconv.analysis.input_shape import check_input_shape
from mlpconv.errors import MlpconvError, SurgeryError
from mlpconv.surgery.heads.find import Head, HeadValue, trace_head
from mlpconv.surgery.heads.modules import ModuleEdits
from mlpconv.surgery.heads.rewriter import Rewriter
from mlpconv.surgery.tracing.accept import check_model, deep_copy
from mlpconv.surgery.tracing.graph import meta_copy, replace_module
from mlpconv.surgery.tracing.rewritten import Rewritten

__all__ = ["rewrite_head"]


def rewrite_head(
    model: nn.Module, input_shape: tuple[int, int, int], rewriter: type[Rewriter], output: int | str | None = None
) -> tuple[nn.Module, Rewritten, ModuleEdits]:
    """Return the checked network, a copy with a rewritten head, and the edits.

    `output` selects the logits among the network's outputs. Raises SurgeryError for a head that the rewriter does not
    support, UsageError for an unknown output.
    """
    original, shape = check_model(model), check_input_shape(input_shape)
    shadow = meta_copy(original).eval()
    edits = ModuleEdits(deep_copy(original))
    opened: set[str] = set()
    try:
        graph, head = trace_head(shadow, shape, opened, output=output, all_outputs=rewriter.all_outputs)
        eval_rewriter = rewriter(graph, head, shadow, edits)
        eval_rewriter.run()
        _check_reads(graph, edits)
    except SurgeryError as error:
        raise SurgeryError(f"{type(original).__name__}: {error}") from error
    graphs = {"eval": graph, "maps": _with_output(graph, eval_rewriter.maps[head.scores.node])}
    _note_output(head, edits)
    names = frozenset(str(step.target) for step in head.steps if step.op == "call_module")
    edited = dict(edits.modules)
    try:
        like = HeadValue(names, edits.output)
        graph, head = trace_head(shadow.train(), shape, opened, like=like, all_outputs=rewriter.all_outputs)
        rewriter(graph, head, shadow, edits).run()
        _check_reads(graph, edits)
        _check_calls(graphs["eval"], edits, set(edited))
        graphs["train"] = graph
    except MlpconvError as error:
        edits.modules = edited
        edits.note(f"The new network works in eval mode only; its training forward cannot be traced: {error}")
    for name, module in edits.modules.items():
        replace_module(edits.root, name, module)
    changed = Rewritten(edits.root, graphs, _constants(graphs))
    if _is_channels_last(original):
        changed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return original, changed, edits


def _note_output(head: Head, edits: ModuleEdits) -> None:
    """Note which output is used as the logits if the network returns several tensors."""
    edits.output = head.scores.name
    if head.alternatives:
        names = ", ".join(repr(output.name) for output in head.alternatives)
        edits.note(f"The category maps are those of output {edits.output!r}; output= selects another: {names}.")
    elif edits.output:
        edits.note(f"The category maps are those of output {edits.output!r}.")


def _check_reads(graph: fx.Graph, edits: ModuleEdits) -> None:
    """Raise SurgeryError if the forward pass reads a parameter of a replaced module."""
    for node in graph.find_nodes(op="get_attr"):
        owner, _, key = str(node.target).rpartition(".")
        if owner in edits.modules and not isinstance(edits.modules[owner], nn.BatchNorm2d):
            raise SurgeryError(f"{owner} is replaced, and its {key} is used elsewhere.")


def _check_calls(graph: fx.Graph, edits: ModuleEdits, edited: set[str]) -> None:
    """Raise SurgeryError if the eval graph calls a module that was replaced for the training graph only."""
    for node in graph.find_nodes(op="call_module"):
        if node.target in edits.modules and node.target not in edited:
            raise SurgeryError(f"{node.target} belongs to the head in training and not in eval mode.")


def _with_output(graph: fx.Graph, node: fx.Node) -> fx.Graph:
    """Return a copy of the graph that returns this node."""
    result = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result.graph_copy(graph, copies)
    result.output(copies[node])
    result.owning_constants = graph.owning_constants  # type: ignore[attr-defined]
    return result


def _constants(graphs: dict[str, fx.Graph]) -> dict[str, Tensor]:
    """Return the constant tensors of all graphs, renamed so that each name is unique."""
    constants: dict[str, Tensor] = {}
    for mode, graph in graphs.items():
        own: dict[str, Tensor] = graph.owning_constants  # type: ignore[attr-defined]
        for node in graph.find_nodes(op="get_attr"):
            if node.target in own:
                node.target = f"{node.target}_{mode}"
                constants[node.target] = own[node.target.removesuffix(f"_{mode}")]
    return constants


def _is_channels_last(model: nn.Module) -> bool:
    """Return whether convolution weights are in channels-last memory format."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    return any(
        not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last) for weight in weights
    )
