"""One more 1x1 and activation at a place of a network, that at first changes nothing: depth to be trained.

The 1x1 starts as the identity (Net2DeeperNet, Chen, Goodfellow and Shlens, arXiv 1511.05641). After a ReLU another ReLU
gives back what it gets, since relu(relu(x)) = relu(x); maxout of two equal pieces does so anywhere, and so does a PReLU
of slope 1. After a GELU or the like no activation of its own kind does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, fx, nn

from mlpconv.analysis.input_shape import check_input_shape, input_shape_of
from mlpconv.errors import SurgeryError, UsageError, did_you_mean
from mlpconv.layers import Maxout
from mlpconv.models import NIN
from mlpconv.models.reconfigure import add_pointwise, block_of, check_deeper, last_conv_of
from mlpconv.surgery.insertion import ACTIVATIONS, Insertion, append_module, is_identity_on
from mlpconv.surgery.proof.accept import check_model, deep_copy
from mlpconv.surgery.proof.compare import compare, in_float64, isolated_eval
from mlpconv.surgery.proof.prove import prove
from mlpconv.surgery.report import Surgery, make_report
from mlpconv.surgery.tracing.channel_dim import channel_dim
from mlpconv.surgery.tracing.graph import dtype_of, module_of, open_all, replace_module, shape_of, trace
from mlpconv.surgery.tracing.proxy import IN_PLACE
from mlpconv.surgery.tracing.ranges import ANY, Range, range_of

__all__ = ["deepen"]

INITS = ("identity", "he")
MAPS, ROWS = 4, 2
"""Dimensions of maps (N, C, H, W) and of rows (N, C)."""
LAYOUTS = {2: (1,), 3: (2,), 4: (1, 3)}
"""For each number of dimensions those that may hold the channels: (N, C), (N, L, C), (N, C, H, W), (N, H, W, C)."""
ACCEPTED = "maps (N, C, H, W) or (N, H, W, C), tokens (N, L, C) and rows (N, C) are accepted."


def deepen(
    model: nn.Module,
    where: str | Sequence[str],
    init: str = "identity",
    *,
    input_shape: tuple[int, int, int] | None = None,
    images: Tensor | None = None,
    activation: str = "auto",
    norm: bool = False,
    noise: float = 0.0,
    seed: int = 0,
) -> Surgery:
    """The network with one more 1x1 and activation behind the named module, or modules.

    The 1x1 is a linear layer on rows (N, C), and where the network has its channels last: (N, L, C), (N, H, W, C).

    init="identity" changes no output, which is proven; init="he" starts at random, for training from there. "auto" is
    the activation that changes nothing: ReLU where only numbers from 0 come, maxout after maxout, else none at all, as
    the report then says; "prelu" changes nothing anywhere. `norm` puts a batch norm between that does nothing in eval
    mode; given images (N, C, H, W) it starts from their statistics, so that it does next to nothing in training, too.
    `noise` adds that share of He's deviation, drawn by `seed`: no longer exact, but two equal pieces of a maxout part.
    A block of our own networks ("blocks.0") gets one more of its own 1x1s, and the network stays our own.

    Names of parameters stay; new ones have "deepened" in theirs. `input_shape` as for `fold`.
    Raises UsageError for unknown names and settings, SurgeryError where it cannot be done, or not exactly.
    """
    model = check_model(model)
    shape = check_input_shape(input_shape or input_shape_of(model))
    names = (where,) if isinstance(where, str) else tuple(where)
    asked = Insertion(0, True, init, noise, activation, norm, seed)
    _check(model, names, asked)
    inserts = {name: _planned(model, name, asked, shape, images) for name in names}
    changed = _applied(model, inserts)
    exact = all(insert.exact for insert in inserts.values())
    if exact:
        proof = prove(model, changed, shape, images, precise=_applied(in_float64(model), inserts))
    else:
        proof = compare(model, changed, shape, images)
    notes = [note for name, insert in inserts.items() for note in _notes(name, insert, images is not None)]
    return Surgery(
        changed,
        make_report("deepen", model, changed, shape, proof, names=names, exact=exact, notes=notes),
    )


def _check(model: nn.Module, names: Sequence[str], asked: Insertion) -> None:
    """UsageError for settings and names that there are not."""
    for what, given, accepted_words in (
        ("init", asked.init, INITS),
        ("activation", asked.activation, ("auto", *ACTIVATIONS)),
    ):
        if given not in accepted_words:
            raise UsageError(f"There is no {what} {given!r}; {did_you_mean(str(given), accepted_words)}")
    if not isinstance(asked.noise, int | float) or not 0 <= asked.noise < 1:
        raise UsageError(f"noise is {asked.noise!r}; a number from 0 up to, not including, 1 is accepted.")
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known:
            near = did_you_mean(name, known).split("Accepted:")[0]
            raise UsageError(f"{type(model).__name__} has no module {name!r}; {near}model.named_modules() names all.")
    if not names or len({model.get_submodule(name) for name in names}) < len(names):
        raise UsageError(f"where is {list(names)}; the names of one or more modules, no two the same, are accepted.")


def _planned(
    model: nn.Module, where: str, asked: Insertion, shape: tuple[int, int, int], images: Tensor | None
) -> Insertion:
    """What to insert behind a module; SurgeryError where that is nothing."""
    block = block_of(model, where)
    node = _call(model, where, shape)
    size = shape_of(node) or ()
    dim = _channel_dim(model, where, size, shape)
    last = len(size) > ROWS and dim == len(size) - 1
    bounds = _bounds(model, where, shape)
    if block is not None:
        config = cast("NIN", model).config
        if asked.activation not in ("auto", config.activation) or (asked.norm and config.norm is None):
            raise SurgeryError(
                f"{where} is a block of {config.name}, whose 1x1s all have activation={config.activation!r} and "
                f"norm={config.norm!r}, and so would this one: leave both out, or name a module inside the block."
            )
        check_deeper(cast("NIN", model), block, exact=asked.exact)
        made = replace(asked, channels=size[dim], activation=config.activation, norm=config.norm is not None)
    else:
        chosen = _activation(model, where, asked, bounds)
        if last:
            _check_last(where, size, chosen, asked)
        made = replace(
            asked,
            channels=size[dim],
            maps=len(size) == MAPS and not last,
            activation=chosen,
            written=any(_writes(user, model) for user in node.users),
            one_slope=last,
        )
    if made.norm and images is not None:
        mean, variance = _statistics(model, where, images)
        made = replace(made, mean=mean, variance=variance)
    return made


def _call(model: nn.Module, where: str, shape: tuple[int, int, int]) -> fx.Node:
    """The one step of the forward pass that calls the module and makes maps or rows of it."""
    module = model.get_submodule(where)
    graph = trace(model, shape, opens=lambda name, other: name != where and open_all(name, other), training=False).graph
    nodes = [node for node in graph.find_nodes(op="call_module") if node.target == where]
    if len(nodes) != 1:
        times = "more than once" if nodes else "by nothing that can be followed"
        raise SurgeryError(
            f"{where} ({type(module).__name__}) is called {times} in the forward pass; a module that is called once is "
            "accepted: name the block that it stands in, or the one around."
        )
    size, kind = shape_of(nodes[0]), dtype_of(nodes[0])
    if size is None or kind is None or not kind.is_floating_point or len(size) not in LAYOUTS:
        made = "no single tensor" if size is None else ("N", *size[1:])
        raise SurgeryError(f"{where} ({type(module).__name__}) makes {made}; {ACCEPTED}")
    call: fx.Node = nodes[0]
    return call


def _channel_dim(model: nn.Module, where: str, size: tuple[int, ...], shape: tuple[int, int, int]) -> int:
    """The dimension of the channels in what a module makes, of this size; SurgeryError where no 1x1 works along it."""
    dim = channel_dim(model, where, shape)
    if dim is None and len(size) == ROWS:
        return 1
    if dim in LAYOUTS[len(size)]:
        return dim
    kind = type(model.get_submodule(where)).__name__
    told = "the data flow does not tell which dimension holds" if dim is None else f"dimension {dim} holds"
    raise SurgeryError(f"{where} ({kind}) makes {('N', *size[1:])}, of which {told} the channels; {ACCEPTED}")


def _check_last(where: str, size: tuple[int, ...], activation: str, asked: Insertion) -> None:
    """SurgeryError for what works on the second dimension only, in maps or tokens that have their channels last."""
    kind = "a batch norm" if asked.norm else "maxout" if activation == "maxout" else ""
    if kind:
        raise SurgeryError(
            f"{where} makes {('N', *size[1:])}, with the channels last, and {kind} works along the second "
            "dimension: leave it out, or name a module that makes (N, C, H, W)."
        )


def _writes(step: fx.Node, model: nn.Module) -> bool:
    """Whether a step may write into the first tensor that it is given."""
    if step.op == "call_module":
        return bool(getattr(module_of(step, model), "inplace", False))
    name = step.target if isinstance(step.target, str) else getattr(step.target, "__name__", "")
    in_place = name.endswith("_") or name in {f"i{each}" for each in IN_PLACE}
    return in_place or bool(step.kwargs.get("inplace")) or any(each is True for each in step.args)


def _bounds(model: nn.Module, where: str, shape: tuple[int, int, int]) -> Range:
    """Between which numbers lies what the module makes."""
    graph = trace(model, shape, training=False)
    inside = [node for node in graph.graph.nodes if where in _places(node)]
    return range_of(inside[-1], graph) if inside else ANY


def _places(node: fx.Node) -> list[str]:
    """The names of the modules in whose forward a step stands, and its own."""
    stack = node.meta.get("nn_module_stack") or {}
    return [*(place for place, _ in stack.values()), *([str(node.target)] if node.op == "call_module" else [])]


def _activation(model: nn.Module, where: str, asked: Insertion, bounds: Range) -> str:
    """The activation to insert: what was asked for, or one that changes nothing; SurgeryError where it would not."""
    if asked.activation == "auto":
        if isinstance(model.get_submodule(where), Maxout):
            return "maxout"
        return "relu" if is_identity_on("relu", bounds) else "identity"
    if asked.exact and not is_identity_on(asked.activation, bounds):
        low, high = bounds
        raise SurgeryError(
            f"{where} makes numbers from {low:g} to {high:g} as far as its forward tells, and {asked.activation} does "
            "not give all of them back. Name a place after a ReLU, or use init='he' or activation='prelu'."
        )
    return asked.activation


@torch.no_grad()
def _statistics(model: nn.Module, where: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of what the module makes of the images, in eval mode."""
    found: list[Tensor] = []
    copy = deep_copy(model).eval()
    copy.get_submodule(where).register_forward_hook(lambda _, __, output: found.append(output))
    weight = next((p for p in copy.parameters() if p.is_floating_point()), images)
    with isolated_eval(copy):
        copy(images.to(weight.device, weight.dtype))
    variance, mean = torch.var_mean(found[0].transpose(0, 1).flatten(1).double(), 1, correction=0)
    return mean, variance


def _applied(model: nn.Module, inserts: Mapping[str, Insertion]) -> nn.Module:
    """A copy of the network with the inserts."""
    made = deep_copy(model)
    for name, insert in inserts.items():
        block = block_of(made, name)
        if block is not None:
            own = cast("NIN", made)
            parts = insert.build(last_conv_of(own, block).weight)
            norm = cast("nn.Module", parts.norm) if insert.norm else None
            add_pointwise(own, block, cast("nn.Module", parts.conv), norm)
            continue
        old = made.get_submodule(name)
        like = next((p for p in (*old.parameters(), *made.parameters()) if p.is_floating_point()), torch.empty(0))
        modes = {module: module.training for module in old.modules()}
        replace_module(made, name, append_module(old, insert.build(like).train(old.training)))
        for module, training in modes.items():
            module.training = training
    return made


def _notes(where: str, insert: Insertion, seen: bool) -> list[str]:
    """What the reader must know about one place."""
    notes = []
    if insert.activation == "identity" and insert.init == "identity":
        notes.append(
            f"Behind {where} no activation gives back what it gets, so the 1x1 there is linear: activation='prelu' "
            "begins as none and can learn to bend."
        )
    if insert.norm and not seen:
        notes.append(
            f"The batch norm behind {where} does nothing in eval mode, but begins to normalise as soon as you train: "
            "give images to start it from their statistics."
        )
    return notes
