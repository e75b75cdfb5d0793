"""Rules that decide from a recorded forward pass which operations apply to a network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from survey.flow import Flow, Step

__all__ = ["RULES", "Head", "dense_share", "head_of", "multiply_adds", "norms_behind_layers", "places_to_deepen"]

RULES = {
    "fold": "a batch norm directly after a convolution or linear layer",
    "convolutionalize": "feature maps (N, C, H, W) that are pooled or flattened, followed only by steps on rows (N, C) "
    "such as linear layers, activations, norms and dropout; not a network that ends in tokens",
    "pool_head": "the same with a global average pool, followed only by linear layers, batch norms, dropout and "
    "weighted sums (with an activation or layer norm after the pool there is no exact class activation map)",
    "deepen": "a convolution that is called once (the middle one is used), or a ReLU that is called once, after a "
    "convolution or batch norm (the last one is used)",
    "factorize": "convolutions without groups and linear layers, called as modules, with at least three quarters of "
    "the multiply-adds",
}
MAPS, TOKENS, ROWS = 4, 3, 2
LAYERS = {"conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear"}
SHAPE = {
    "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "getitem", "to",
    "float", "clone", "detach", "movedim", "identity",
}  # fmt: skip
PLAIN = {
    "add", "iadd", "radd", "sub", "mul", "imul", "rmul", "div", "truediv", "itruediv", "cat", "stack", "batch_norm",
    "dropout", "dropout2d", "feature_dropout", "alpha_dropout",
}  # fmt: skip
"""Steps on rows that are weighted sums, in addition to SHAPE."""
NONLINEAR = {
    "relu", "relu6", "hardtanh", "gelu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "elu", "leaky_relu",
    "prelu", "layer_norm", "softmax", "log_softmax", "mish", "selu", "celu", "group_norm", "rms_norm", "normalize",
    "square", "pow", "clamp", "softplus",
}  # fmt: skip
POOLS = {"adaptive_avg_pool2d", "avg_pool2d", "adaptive_max_pool2d", "max_pool2d", "amax", "mean", "sum"}
AVERAGES = {"adaptive_avg_pool2d", "avg_pool2d", "mean"}
RELUS = (nn.ReLU, nn.ReLU6)


@dataclass
class Head:
    """The head of a network."""

    begins: str
    """"maps", "tokens", or the step that is not supported."""
    how: str = ""
    """First step after the maps: "average" over all cells, "other pool", "flatten" or "convolution"."""
    cells: tuple[int, int] = (0, 0)
    steps: tuple[str, ...] = ()
    """All steps after the maps, from the logits backwards."""

    @property
    def on_maps(self) -> bool:
        """Whether convolutionalize applies."""
        return self.begins == "maps"

    @property
    def averaged(self) -> bool:
        """Whether pool_head applies, with exact class activation maps."""
        return self.on_maps and self.how == "average" and not NONLINEAR.intersection(self.steps)


def head_of(flow: Flow) -> Head:
    """Follow the logits (N, K) back through steps on rows, and return the head."""
    logits = [leaf for leaf in tree_leaves(flow.output) if isinstance(leaf, Tensor) and leaf.dim() == ROWS]
    if not logits:
        return Head("no logits (N, K)")
    names: list[str] = []
    heads: list[Head] = []
    stack: list[tuple[Tensor, int]] = [(tensor, len(flow.steps)) for tensor in logits]
    done = set()
    while stack:
        tensor, before = stack.pop()
        place = flow.source(tensor, before)
        if place is None:
            return Head("the image itself")
        if place in done:
            continue
        done.add(place)
        step = flow.steps[place]
        head = _head_start(flow, step, place)
        if head is not None:
            heads.append(head)
            continue
        names.append(step.name)
        stack += [(source, place) for source in flow.data(step)]
    unsupported = next((head for head in heads if not head.on_maps), None)
    if unsupported is not None:
        return unsupported
    hows = {head.how for head in heads}
    return Head("maps", hows.pop() if len(hows) == 1 else "several", heads[0].cells, tuple(names))


def _head_start(flow: Flow, step: Step, place: int) -> Head | None:
    """Return the head if this is its first step, or None for a later step."""
    source = max(flow.data(step), key=Tensor.dim, default=None)
    if source is None:
        return None
    shape = tuple(source.shape)
    if len(shape) == MAPS and step.name in POOLS:
        return Head(
            "maps", "average" if step.name in AVERAGES and _is_row(step.out) else "other pool", _cells(step, shape)
        )
    if len(shape) == MAPS and not _is_row(shape) and (len(step.out) == ROWS or _is_row(step.out)):
        known = {"conv2d": "convolution", **dict.fromkeys(SHAPE, "flatten")}
        cells = _before_pool(flow, source, place)
        return Head("maps", known[step.name], cells) if step.name in known else Head(f"{step.name}()")
    if len(shape) == TOKENS and step.name in ("mean", "amax", "sum"):
        behind = flow.source(source, place)
        if behind is not None and flow.steps[behind].name in SHAPE:
            before = flow.data(flow.steps[behind])[0]
            if before.dim() == MAPS and step.args[1:2] in ((-1,), (2,), ([-1],)):
                return Head(
                    "maps", "average" if step.name == "mean" else "other pool", (before.shape[2], before.shape[3])
                )
    if len(shape) == TOKENS:
        return Head("tokens")
    if step.name in SHAPE | PLAIN | NONLINEAR or (step.name in ("linear", "conv2d") and _is_row(shape)):
        return None
    return Head(f"{step.name}()")


def _is_row(shape: Sequence[int]) -> bool:
    """Return whether an image is a single row of channels, in any dimension."""
    return math.prod(shape[1:]) == max(shape[1:])


def _before_pool(flow: Flow, maps: Tensor, before: int) -> tuple[int, int]:
    """Return rows and columns of flattened maps, before a preceding pool if there is one."""
    place = flow.source(maps, before)
    step = flow.steps[place] if place is not None else None
    unpooled = flow.data(step)[0] if step is not None and step.name in POOLS else maps
    return unpooled.shape[2], unpooled.shape[3]


def _cells(step: Step, shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of the maps; (N, H, W, C) is detected by the dimensions of the mean."""
    dims = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim")
    last = step.name in ("mean", "sum", "amax") and isinstance(dims, tuple | list) and tuple(dims) == (1, 2)
    return (shape[1], shape[2]) if last else (shape[2], shape[3])


def norms_behind_layers(flow: Flow) -> tuple[int, int]:
    """Count the batch norms, and those directly after a layer that feeds nothing else.

    Weight-standardised convolutions call batch_norm on their weights, which does not count.
    """
    named = [(place, step) for place, step in enumerate(flow.steps) if step.name == "batch_norm"]
    norms = [(place, step) for place, step in named if id(step.inputs[0]) in flow.seen]
    beside = 0
    for place, step in norms:
        source = flow.source(step.inputs[0], place)
        layer = source is not None and flow.steps[source].name in LAYERS
        beside += layer and len(set(flow.used_by[id(step.inputs[0])])) == 1
    return len(norms), beside


def multiply_adds(model: nn.Module, image: Tensor) -> int:
    """Count the multiply-adds of one forward pass with torch's FlopCounterMode.

    The counter fails for parameters that require gradients, and misses the products in fused CPU attention.
    """
    trainable = [parameter.requires_grad_(False) for parameter in model.parameters() if parameter.requires_grad]
    counter = FlopCounterMode(display=False)
    try:
        with sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
            model(image)
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
    return counter.get_total_flops() // 2


def dense_share(model: nn.Module, image: Tensor) -> float:
    """Return the share of multiply-adds in convolutions without groups and linear layers that are called as modules.

    A weight that is passed to a function instead, as in the attention of EVA, cannot be factorized.
    """
    dense = 0

    def count(module: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
        nonlocal dense
        dense += output.numel() * module.weight[0].numel()

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    _run_with_hooks(model, image, [layer for layer in layers if getattr(layer, "groups", 1) == 1], count)
    return dense / max(1, multiply_adds(model, image))


def places_to_deepen(model: nn.Module, image: Tensor) -> list[str]:
    """Return the middle convolution and the last ReLU after a convolution or norm, of modules called once."""
    names = {module: name for name, module in model.named_modules()}
    calls: list[tuple[nn.Module, int, int, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((module, id(inputs[0]), id(output), output))

    kinds = (nn.Conv2d, nn.BatchNorm2d, *RELUS)
    _run_with_hooks(model, image, [module for module in names if isinstance(module, kinds)], note)
    counts = Counter(call[0] for call in calls)
    once = [call for call in calls if counts[call[0]] == 1 and call[3].dim() == MAPS]
    layer_outputs = {out for module, _, out, _ in calls if isinstance(module, nn.Conv2d | nn.BatchNorm2d)}
    convs = [names[module] for module, *_ in once if isinstance(module, nn.Conv2d)]
    relus = [names[module] for module, source, *_ in once if isinstance(module, RELUS) and source in layer_outputs]
    return [*convs[len(convs) // 2 :][:1], *relus[-1:]]


def _run_with_hooks(model: nn.Module, image: Tensor, modules: Sequence[nn.Module], hook: Callable[..., None]) -> None:
    """Run one forward pass without gradients, with the hook on these modules."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
