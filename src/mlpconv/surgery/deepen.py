"""Insert a 1x1 and an activation into a network without changing its outputs: depth to train from.

The 1x1 starts as the identity (Net2DeeperNet, Chen, Goodfellow and Shlens, arXiv 1511.05641). A ReLU after a ReLU is
the identity, since relu(relu(x)) = relu(x); maxout of two equal pieces and a PReLU of slope 1 always are. A GELU after
a GELU is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from mlpconv.analysis.input_shape import check_input_shape, input_shape_of
from mlpconv.errors import SurgeryError, UsageError, did_you_mean
from mlpconv.layers import Maxout
from mlpconv.models import NIN
from mlpconv.models.reconfigure import add_pointwise, block_of, check_deeper, last_conv_of
from mlpconv.surgery.insertion import ACTIVATIONS, Insertion, append_module, is_identity_on
from mlpconv.surgery.proof.compare import compare, in_float64, isolated_eval
from mlpconv.surgery.proof.prove import prove
from mlpconv.surgery.report import Surgery, make_report
from mlpconv.surgery.tracing.accept import check_model, deep_copy
from mlpconv.surgery.tracing.channel_dim import channel_dim
from mlpconv.surgery.tracing.graph import dtype_of, meta_copy, module_of, open_all, replace_module, shape_of
from mlpconv.surgery.tracing.proxy import IN_PLACE
from mlpconv.surgery.tracing.ranges import Range, range_of
from mlpconv.surgery.tracing.tracer import trace_graph

__all__ = ["deepen"]

INITS = ("identity", "he")
MAPS, VECTORS = 4, 2
"""Number of dimensions of feature maps (N, C, H, W) and of vectors (N, C)."""
LAYOUTS = {2: (1,), 3: (2,), 4: (1, 3)}
"""Accepted channel dimensions by number of dimensions: (N, C), (N, L, C), (N, C, H, W), (N, H, W, C)."""
ACCEPTED = "feature maps (N, C, H, W) or (N, H, W, C), tokens (N, L, C) and vectors (N, C) are accepted."


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
    """Insert a 1x1 and an activation after each named module.

    The 1x1 is a linear layer for vectors (N, C) and if the channels come last: (N, L, C), (N, H, W, C).

    init="identity" changes no output, which is proven; init="he" is a random initialisation to train from. "auto"
    chooses an activation that changes nothing: ReLU if the input is never negative, maxout after maxout, otherwise
    none, as the report says; "prelu" changes nothing anywhere. `norm` adds a batch norm between the two that is the
    identity in eval mode; given `images` (N, C, H, W), it starts from their statistics and is nearly the identity in
    training too. `noise` adds that fraction of He's standard deviation, drawn with `seed`: the result is no longer
    exact, but the two equal pieces of a maxout separate. A block of a Network In Network of this package ("blocks.0")
    gets another of its own 1x1s, and its configuration stays valid.

    Parameters keep their names; new ones contain "deepened". `input_shape` is as for `fold`.
    Raises UsageError for unknown names and settings, SurgeryError if the insertion is impossible or not exact.
    """
    model = check_model(model)
    shape = check_input_shape(input_shape or input_shape_of(model))
    names = (where,) if isinstance(where, str) else tuple(where)
    settings = Insertion(0, True, init, noise, activation, norm, seed)
    _check(model, names, settings)
    inserts = {name: _plan(model, name, settings, shape, images) for name in names}
    deepened = _apply(model, inserts)
    exact = all(insert.exact for insert in inserts.values())
    if exact:
        proof = prove(model, deepened, shape, images, precise=_apply(in_float64(model), inserts))
    else:
        proof = compare(model, deepened, shape, images)
    notes = [note for name, insert in inserts.items() for note in _notes(name, insert, images is not None)]
    report = make_report("deepen", model, deepened, shape, proof, names=names, exact=exact, notes=notes)
    return Surgery(deepened, report)


def _check(model: nn.Module, names: Sequence[str], settings: Insertion) -> None:
    """Raise UsageError for unknown settings and module names."""
    for option, accepted in (("init", INITS), ("activation", ("auto", *ACTIVATIONS))):
        value = getattr(settings, option)
        if value not in accepted:
            raise UsageError(f"There is no {option} {value!r}; {did_you_mean(str(value), accepted)}")
    if not isinstance(settings.noise, int | float) or not 0 <= settings.noise < 1:
        raise UsageError(f"noise is {settings.noise!r}; a number of at least 0 and below 1 is accepted.")
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known:
            raise UsageError(f"{type(model).__name__} has no module {name!r}; {did_you_mean(name, known)}")
    if not names or len({model.get_submodule(name) for name in names}) < len(names):
        raise UsageError(f"where is {list(names)}; one or more names of different modules are accepted.")


def _plan(
    model: nn.Module, where: str, settings: Insertion, shape: tuple[int, int, int], images: Tensor | None
) -> Insertion:
    """Choose what to insert after a module; raise SurgeryError if nothing can be."""
    block = block_of(model, where)
    output = _trace_output(model, where, shape)
    dim = _channel_dim(model, where, output.size, shape)
    last = len(output.size) > VECTORS and dim == len(output.size) - 1
    if block is not None:
        config = cast("NIN", model).config
        if settings.activation not in ("auto", config.activation) or (settings.norm and config.norm is None):
            raise SurgeryError(
                f"{where} is a block of {config.name}, whose 1x1s all have activation={config.activation!r} and "
                f"norm={config.norm!r}, and so does an inserted one: leave both out, or name a module inside the block."
            )
        check_deeper(cast("NIN", model), block, exact=settings.exact)
        insert = replace(
            settings, channels=output.size[dim], activation=config.activation, norm=config.norm is not None
        )
    else:
        activation = _activation(model, where, settings, output.bounds)
        if last:
            _check_channels_last(where, output.size, activation, settings)
        insert = replace(
            settings,
            channels=output.size[dim],
            maps=len(output.size) == MAPS and not last,
            activation=activation,
            written=output.written,
            one_slope=last,
        )
    if insert.norm and images is not None:
        mean, variance = _statistics(model, where, images)
        insert = replace(insert, mean=mean, variance=variance)
    return insert


class _Output(NamedTuple):
    """The output of a module in the forward pass."""

    size: tuple[int, ...]
    bounds: Range
    written: bool
    """Whether a later step writes into it."""


class _Probe(nn.Identity):
    """A node of the graph right after the module that it is appended to."""


def _trace_output(model: nn.Module, where: str, shape: tuple[int, int, int]) -> _Output:
    """Trace the network once and describe a module's output; SurgeryError unless one call returns one float tensor."""
    shadow, probe = meta_copy(model).eval(), _Probe()
    replace_module(shadow, where, append_module(shadow.get_submodule(where), probe))
    graph = trace_graph(shadow, shape, lambda name, module: module is not probe and open_all(name, module))
    nodes = []
    for node in graph.find_nodes(op="call_module"):
        enclosing = [name for name, _ in (node.meta.get("nn_module_stack") or {}).values()]
        # A module whose inside cannot be traced is one node, with the probe inside.
        if node.target == where or (module_of(node, shadow) is probe and where in enclosing):
            nodes.append(node)
    kind = type(model.get_submodule(where)).__name__
    if len(nodes) != 1:
        times = "more than once" if nodes else "by nothing that can be traced"
        raise SurgeryError(
            f"{where} ({kind}) is called {times} in the forward pass; a module that is called once is accepted: name "
            "the block that contains it, or the module around that."
        )
    node = nodes[0]
    size, dtype = shape_of(node), dtype_of(node)
    if size is None or dtype is None or not dtype.is_floating_point or len(size) not in LAYOUTS:
        description = "no single tensor" if size is None else ("N", *size[1:])
        raise SurgeryError(f"{where} ({kind}) returns {description}; {ACCEPTED}")
    source = node if node.target == where else node.all_input_nodes[0]
    return _Output(size, range_of(source, shadow), any(_writes(user, shadow) for user in node.users))


def _channel_dim(model: nn.Module, where: str, size: tuple[int, ...], shape: tuple[int, int, int]) -> int:
    """Return the channel dimension of a module's output; raise SurgeryError if a 1x1 cannot be applied along it."""
    dim = channel_dim(model, where, shape)
    if dim is None and len(size) == VECTORS:
        return 1
    if dim in LAYOUTS[len(size)]:
        return dim
    kind = type(model.get_submodule(where)).__name__
    problem = "the channel dimension cannot be inferred" if dim is None else f"the channels are dimension {dim}"
    raise SurgeryError(f"{where} ({kind}) returns {('N', *size[1:])} and {problem}; {ACCEPTED}")


def _check_channels_last(where: str, size: tuple[int, ...], activation: str, settings: Insertion) -> None:
    """Raise SurgeryError for layers that work along the second dimension if the channels come last."""
    layer = "a batch norm" if settings.norm else "maxout" if activation == "maxout" else ""
    if layer:
        raise SurgeryError(
            f"{where} returns {('N', *size[1:])}, with the channels last, and {layer} works along the second "
            "dimension: leave it out, or name a module that returns (N, C, H, W)."
        )


def _writes(step: fx.Node, model: nn.Module) -> bool:
    """Return whether a step may write into its first argument."""
    if step.op == "call_module":
        return bool(getattr(module_of(step, model), "inplace", False))
    name = step.target if isinstance(step.target, str) else getattr(step.target, "__name__", "")
    in_place = name.endswith("_") or name in {f"i{operator}" for operator in IN_PLACE}
    return in_place or bool(step.kwargs.get("inplace")) or any(argument is True for argument in step.args)


def _activation(model: nn.Module, where: str, settings: Insertion, bounds: Range) -> str:
    """Return the activation to insert; raise SurgeryError if the requested one would change the outputs."""
    if settings.activation == "auto":
        if isinstance(model.get_submodule(where), Maxout):
            return "maxout"
        return "relu" if is_identity_on("relu", bounds) else "identity"
    if settings.exact and not is_identity_on(settings.activation, bounds):
        low, high = bounds
        raise SurgeryError(
            f"The values of {where} are between {low:g} and {high:g} as far as its forward pass shows, and "
            f"{settings.activation} changes some of them. Name a module that ends in ReLU, or use init='he' or "
            "activation='prelu'."
        )
    return settings.activation


@torch.no_grad()
def _statistics(model: nn.Module, where: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance (C,) of a module's output for the images, in eval mode."""
    outputs: list[Tensor] = []
    copy = deep_copy(model).eval()
    copy.get_submodule(where).register_forward_hook(lambda _, __, output: outputs.append(output))
    weight = next((p for p in copy.parameters() if p.is_floating_point()), images)
    with isolated_eval(copy):
        copy(images.to(weight.device, weight.dtype))
    variance, mean = torch.var_mean(outputs[0].transpose(0, 1).flatten(1).double(), 1, correction=0)
    return mean, variance


def _apply(model: nn.Module, inserts: Mapping[str, Insertion]) -> nn.Module:
    """Return a copy of the network with the insertions."""
    deepened = deep_copy(model)
    for name, insert in inserts.items():
        block = block_of(deepened, name)
        if block is not None:
            network = cast("NIN", deepened)
            layers = insert.build(last_conv_of(network, block).weight)
            norm = cast("nn.Module", layers.norm) if insert.norm else None
            add_pointwise(network, block, cast("nn.Module", layers.conv), norm)
            continue
        old = deepened.get_submodule(name)
        like = next((p for p in (*old.parameters(), *deepened.parameters()) if p.is_floating_point()), torch.empty(0))
        modes = {module: module.training for module in old.modules()}
        replace_module(deepened, name, append_module(old, insert.build(like).train(old.training)))
        for module, training in modes.items():
            module.training = training
    return deepened


def _notes(where: str, insert: Insertion, has_images: bool) -> list[str]:
    """Return what the user must know about one insertion."""
    notes = []
    if insert.activation == "identity" and insert.init == "identity":
        notes.append(
            f"After {where} no activation is the identity, so the 1x1 there is linear: activation='prelu' starts as "
            "the identity and learns its slope."
        )
    if insert.norm and not has_images:
        notes.append(
            f"The batch norm after {where} is the identity in eval mode, but normalises as soon as you train: pass "
            "images to start it from their statistics."
        )
    return notes
