"""Which layers of a network can be computed at a lower rank, what they cost, and what the rank would save."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from mlpconv.models.reconfigure import rank_reason
from mlpconv.surgery.lowrank.allocate import Option
from mlpconv.surgery.lowrank.factors import Basis, FactorizableLayer
from mlpconv.surgery.proof.accept import is_parametrized, shared_names
from mlpconv.surgery.proof.compare import isolated_eval
from mlpconv.surgery.proof.replaceable import find_irreplaceable

__all__ = ["Candidate", "find_candidates"]

Law = Callable[[float], float]

STEPS = 24
"""Ranks that are tried on each side, and one less."""
MAPS = 4
PLAIN = (nn.Conv2d, nn.Linear)
SAME: Law = float
"""A loss of responses is what it is."""


@dataclass
class Candidate:
    """A layer, and where it works in one image."""

    layer: FactorizableLayer
    places_in: int = 0
    """Pixels that it reads, over all its calls."""
    places_out: int = 0
    """Pixels that it makes."""
    calls: int = 0

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Channels in, channels out, taps of the kernel."""
        weight = self.layer.weight
        return weight.shape[1], weight.shape[0], math.prod(weight.shape[2:])

    def macs(self, rank_in: int | None = None, rank_out: int | None = None) -> int:
        """Multiply-adds of one image at these ranks; None keeps a side whole."""
        channels, out, taps = self.sizes
        before = self.places_in * channels * rank_in if rank_in else 0
        after = self.places_out * rank_out * out if rank_out else 0
        return before + self.places_out * (rank_in or channels) * taps * (rank_out or out) + after

    def options(self, basis: Basis, into: Law = SAME, out: Law = SAME) -> list[Option]:
        """The layer as it is, and every rank that costs less; the laws say what a loss of responses means."""
        channels, made, _ = self.sizes
        inside = [None, *_levels(channels)] if basis.into is not None else [None]
        found = [Option(self.macs(), 0.0)]
        for rank_in, rank_out in product(inside, [None, *_levels(made)]):
            macs = self.macs(rank_in, rank_out)
            if macs < found[0].cost:
                lost = into(float(basis.into.lost[rank_in])) if basis.into is not None and rank_in else 0.0
                lost += out(float(basis.out.lost[rank_out])) if rank_out else 0.0
                found.append(Option(macs, lost, rank_in, rank_out))
        return found


def _levels(channels: int) -> list[int]:
    """Ranks below the number of channels that are tried."""
    return sorted({max(1, round(channels * step / STEPS)) for step in range(1, STEPS)} - {channels})


def find_candidates(model: nn.Module, image: Tensor) -> tuple[dict[str, Candidate], dict[str, str]]:
    """The layers that a forward pass of one image calls and that can be factorised, in order; and why others cannot.

    The model is run, so it must be a copy; hooks are removed again.
    """
    found: dict[str, Candidate] = {}
    left: dict[str, str] = {}
    layers = dict(_layers(model, left))
    hooks = [layer.register_forward_hook(_watch(name, found, left)) for name, layer in layers.items()]
    weight = next((p for p in model.parameters() if p.is_floating_point()), image)
    image = image.to(weight.device, weight.dtype)
    try:
        with isolated_eval(model):
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    left |= {name: "is not called by the forward pass" for name in layers if name not in found}
    for name in find_irreplaceable(model, [name for name in found if name not in left], image):
        left[name] = "is not only called: the forward pass reads its weight or another attribute"
    return {name: each for name, each in found.items() if name not in left}, left


def _layers(model: nn.Module, left: dict[str, str]) -> Iterator[tuple[str, FactorizableLayer]]:
    """Convolutions and linear layers that may be replaced; `left` says which may not, and why."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        reason = _reason(model, module) or rank_reason(model, name)
        if reason:
            left[name] = reason
        else:
            yield name, module


def _reason(model: nn.Module, module: FactorizableLayer) -> str:
    if is_parametrized(module):
        return "has a weight that is worked out from others"
    if type(module) not in PLAIN and len({*module.state_dict(), "weight", "bias"}) > 2:
        return f"is a {type(module).__name__}, which has more than a weight and a bias"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return f"has {module.groups} groups" if module.groups < module.in_channels else "is depthwise"
    tied = shared_names(model, module)
    return f"shares its weights with {tied[0]}" if tied else ""


def _watch(name: str, found: dict[str, Candidate], left: dict[str, str]) -> Any:
    def hook(module: FactorizableLayer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        each = found.setdefault(name, Candidate(module))
        if isinstance(module, nn.Conv2d) and inputs[0].dim() != MAPS:
            left[name] = "works on a single image without a batch"
            return
        if type(module) not in PLAIN and not _computes_plainly(module, inputs[0]):
            left[name] = f"is a {type(module).__name__}, which computes in another way"
            return
        maps = isinstance(module, nn.Conv2d)
        each.places_in += inputs[0].numel() // inputs[0].shape[1 if maps else -1]
        each.places_out += output.numel() // output.shape[1 if maps else -1]
        each.calls += 1

    return hook


def _computes_plainly(layer: FactorizableLayer, x: Tensor) -> bool:
    """Whether a layer of a class of its own gives what torch's would, bit for bit, in eval mode and in training."""
    if isinstance(layer, nn.Conv2d):
        plain = nn.Conv2d._conv_forward(layer, x, layer.weight, layer.bias)
    else:
        plain = nn.Linear.forward(layer, x)
    mode = layer.training
    try:
        return all(torch.equal(layer.train(training).forward(x), plain) for training in (True, False))
    finally:
        layer.train(mode)
