"""Which operations make sense for a network: looked up in the steps of its forward pass, by the same rules for all."""

from __future__ import annotations

import math
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
    "fold": "a batch norm directly behind a convolution or linear layer",
    "convolutionalize": "maps (N, C, H, W) that are pooled or flattened, and after them only steps on rows (N, C), "
    "such as linear layers, activations, norms and dropout; no network that ends in tokens",
    "pool_head": "the same, where the maps are averaged over all cells, and nothing follows but linear layers, batch "
    "norms, dropout and weighted sums (an activation or layer norm after the pool leaves no exact map to find)",
    "deepen": "a convolution that is called once (the one in the middle is taken), or a ReLU that is called once, "
    "behind a convolution or batch norm (the last one is taken)",
    "factorize": "convolutions without groups and linear layers, called as modules, that do three quarters of the "
    "multiply-adds",
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
"""Beside shapes: steps on rows that are weighted sums."""
BENT = {
    "relu", "relu6", "hardtanh", "gelu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "elu", "leaky_relu",
    "prelu", "layer_norm", "softmax", "log_softmax", "mish", "selu", "celu", "group_norm", "rms_norm", "normalize",
    "square", "pow", "clamp", "softplus",
}  # fmt: skip
POOLS = {"adaptive_avg_pool2d", "avg_pool2d", "adaptive_max_pool2d", "max_pool2d", "amax", "mean", "sum"}
AVERAGES = {"adaptive_avg_pool2d", "avg_pool2d", "mean"}
RELUS = (nn.ReLU, nn.ReLU6)


@dataclass
class Head:
    """The end of a network, back from its logits."""

    begins: str
    """"maps", "tokens", or what stood in the way."""
    how: str = ""
    """How the maps end: "average" over all cells, "maximum", "flatten", "convolution"."""
    cells: tuple[int, int] = (0, 0)
    steps: tuple[str, ...] = ()
    """Every step behind the maps, from the logits back."""

    @property
    def on_maps(self) -> bool:
        """Whether a head of convolutions makes sense."""
        return self.begins == "maps"

    @property
    def averaged(self) -> bool:
        """Whether exact class maps make sense."""
        return self.on_maps and self.how == "average" and not BENT.intersection(self.steps)


def head_of(flow: Flow) -> Head:
    """Back from the logits (N, K), through steps on rows, to what they are made of."""
    logits = [leaf for leaf in tree_leaves(flow.output) if isinstance(leaf, Tensor) and leaf.dim() == ROWS]
    if not logits:
        return Head("no logits (N, K)")
    names: list[str] = []
    heads: list[Head] = []
    waiting: list[tuple[Tensor, int]] = [(each, len(flow.steps)) for each in logits]
    done = set()
    while waiting:
        tensor, before = waiting.pop()
        place = flow.source(tensor, before)
        if place is None:
            return Head("the image itself")
        if place in done:
            continue
        done.add(place)
        step = flow.steps[place]
        found = _begins(flow, step, place)
        if found is not None:
            heads.append(found)
            continue
        names.append(step.name)
        waiting += [(each, place) for each in flow.data(step)]
    odd = next((head for head in heads if not head.on_maps), None)
    if odd is not None:
        return odd
    hows = {head.how for head in heads}
    return Head("maps", hows.pop() if len(hows) == 1 else "several", heads[0].cells, tuple(names))


def _begins(flow: Flow, step: Step, place: int) -> Head | None:
    """What the head begins with, where this is its first step; None for a step inside the head."""
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
                return Head("maps", "average" if step.name == "mean" else "other pool", tuple(before.shape[2:]))
    if len(shape) == TOKENS:
        return Head("tokens")
    if step.name in SHAPE | PLAIN | BENT or (step.name in ("linear", "conv2d") and _is_row(shape)):
        return None
    return Head(f"{step.name}()")


def _is_row(shape: Sequence[int]) -> bool:
    """Whether an image is one row of channels, wherever they lie."""
    return math.prod(shape[1:]) == max(shape[1:])


def _before_pool(flow: Flow, maps: Tensor, before: int) -> tuple[int, int]:
    """Rows and columns of flattened maps, or of those that a pool before them made larger or smaller."""
    place = flow.source(maps, before)
    step = flow.steps[place] if place is not None else None
    found = flow.data(step)[0] if step is not None and step.name in POOLS else maps
    return found.shape[2], found.shape[3]


def _cells(step: Step, shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the maps; of (N, H, W, C) where the mean says so."""
    dims = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim")
    last = step.name in ("mean", "sum", "amax") and isinstance(dims, tuple | list) and tuple(dims) == (1, 2)
    return (shape[1], shape[2]) if last else (shape[2], shape[3])


def norms_behind_layers(flow: Flow) -> tuple[int, int]:
    """How many batch norms there are, and how many of them stand directly behind a layer that feeds nothing else.

    Convolutions that standardise their weights call the function on them, which is no norm.
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
    """Of one forward pass, by torch's own counter.

    It fails over parameters that wait for gradients, and does not see the products inside a CPU's fused attention.
    """
    waiting = [parameter.requires_grad_(False) for parameter in model.parameters() if parameter.requires_grad]
    counter = FlopCounterMode(display=False)
    try:
        with sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
            model(image)
    finally:
        for parameter in waiting:
            parameter.requires_grad_(True)
    return counter.get_total_flops() // 2


def dense_share(model: nn.Module, image: Tensor) -> float:
    """The share of all multiply-adds that convolutions without groups and linear layers do, where they are called.

    A weight that is handed to a function instead (as in the attention of EVA) is nothing that a chain could stand for.
    """
    dense = 0

    def count(module: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
        nonlocal dense
        dense += output.numel() * module.weight[0].numel()

    layers = [each for each in model.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    _run_watched(model, image, [each for each in layers if getattr(each, "groups", 1) == 1], count)
    return dense / max(1, multiply_adds(model, image))


def places_to_deepen(model: nn.Module, image: Tensor) -> list[str]:
    """The convolution in the middle, and the last ReLU behind a convolution or norm; only modules called once."""
    names = {module: name for name, module in model.named_modules()}
    calls: list[tuple[nn.Module, int, int, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((module, id(inputs[0]), id(output), output))

    watched = (nn.Conv2d, nn.BatchNorm2d, *RELUS)
    _run_watched(model, image, [module for module in names if isinstance(module, watched)], note)
    once = [call for call in calls if sum(other[0] is call[0] for other in calls) == 1 and call[3].dim() == MAPS]
    made = {out for module, _, out, _ in calls if isinstance(module, nn.Conv2d | nn.BatchNorm2d)}
    convs = [names[module] for module, *_ in once if isinstance(module, nn.Conv2d)]
    relus = [names[module] for module, given, *_ in once if isinstance(module, RELUS) and given in made]
    return [*convs[len(convs) // 2 :][:1], *relus[-1:]]


def _run_watched(model: nn.Module, image: Tensor, modules: Sequence[nn.Module], hook: Callable[..., None]) -> None:
    """One forward pass without gradients, in which the hook sees each of those modules' calls."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
