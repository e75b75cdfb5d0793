"""Find the layers of a network that can be factorized, with their cost at every rank."""

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
from mlpconv.surgery.proof.compare import isolated_eval
from mlpconv.surgery.proof.replaceable import find_irreplaceable
from mlpconv.surgery.tracing.accept import is_parametrized, shared_names

__all__ = ["Candidate", "find_candidates"]

Sensitivity = Callable[[float], float]
"""From the fraction of a layer's output variance lost to that of the network's outputs."""

STEPS = 24
"""Each side has one less rank to choose from, evenly spaced."""
MAPS = 4
PLAIN = (nn.Conv2d, nn.Linear)
EQUAL: Sensitivity = float
"""The network loses the same fraction as the layer."""


@dataclass
class Candidate:
    """A layer that can be factorized, and the number of its calls and positions for one image."""

    layer: FactorizableLayer
    positions_in: int = 0
    """Input positions (pixels, tokens), over all calls."""
    positions_out: int = 0
    """Output positions, over all calls."""
    calls: int = 0

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Input channels, output channels and taps of the kernel."""
        weight = self.layer.weight
        return weight.shape[1], weight.shape[0], math.prod(weight.shape[2:])

    def macs(self, rank_in: int | None = None, rank_out: int | None = None) -> int:
        """Return the multiply-adds for one image at these ranks; None leaves a side at full rank."""
        channels, out, taps = self.sizes
        reduce = self.positions_in * channels * rank_in if rank_in else 0
        expand = self.positions_out * rank_out * out if rank_out else 0
        return reduce + self.positions_out * (rank_in or channels) * taps * (rank_out or out) + expand

    def options(self, basis: Basis, into: Sensitivity = EQUAL, out: Sensitivity = EQUAL) -> list[Option]:
        """Return the original layer and every pair of ranks that costs less; `into` and `out` weight the losses."""
        channels, out_channels, _ = self.sizes
        ranks_in = [None, *_levels(channels)] if basis.into is not None else [None]
        options = [Option(self.macs(), 0.0)]
        for rank_in, rank_out in product(ranks_in, [None, *_levels(out_channels)]):
            macs = self.macs(rank_in, rank_out)
            if macs < options[0].cost:
                lost = into(float(basis.into.lost[rank_in])) if basis.into is not None and rank_in else 0.0
                lost += out(float(basis.out.lost[rank_out])) if rank_out else 0.0
                options.append(Option(macs, lost, rank_in, rank_out))
        return options


def _levels(channels: int) -> list[int]:
    """Return the ranks below the number of channels to choose from."""
    return sorted({max(1, round(channels * step / STEPS)) for step in range(1, STEPS)} - {channels})


def find_candidates(model: nn.Module, image: Tensor) -> tuple[dict[str, Candidate], dict[str, str]]:
    """Return the layers that can be factorized, in the order of the forward pass, and why the others cannot.

    Runs a forward pass of one image (1, C, H, W) on `model`, which must be a copy; hooks are removed afterwards.
    """
    candidates: dict[str, Candidate] = {}
    left_alone: dict[str, str] = {}
    layers = dict(_layers(model, left_alone))
    hooks = [layer.register_forward_hook(_count(name, candidates, left_alone)) for name, layer in layers.items()]
    weight = next((p for p in model.parameters() if p.is_floating_point()), image)
    image = image.to(weight.device, weight.dtype)
    try:
        with isolated_eval(model):
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    left_alone |= {name: "is not called by the forward pass" for name in layers if name not in candidates}
    for name in find_irreplaceable(model, [name for name in candidates if name not in left_alone], image):
        left_alone[name] = "is not only called: the forward pass reads its weight or another attribute"
    return {name: layer for name, layer in candidates.items() if name not in left_alone}, left_alone


def _layers(model: nn.Module, left_alone: dict[str, str]) -> Iterator[tuple[str, FactorizableLayer]]:
    """Yield the convolutions and linear layers that may be replaced; add the others to `left_alone` with the reason."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        reason = _reason(model, module) or rank_reason(model, name)
        if reason:
            left_alone[name] = reason
        else:
            yield name, module


def _reason(model: nn.Module, module: FactorizableLayer) -> str:
    if is_parametrized(module):
        return "has a parametrized weight"
    if type(module) not in PLAIN and len({*module.state_dict(), "weight", "bias"}) > 2:
        return f"is a {type(module).__name__}, which has more than a weight and a bias"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return f"has {module.groups} groups" if module.groups < module.in_channels else "is depthwise"
    tied = shared_names(model, module)
    return f"shares its weights with {tied[0]}" if tied else ""


def _count(name: str, candidates: dict[str, Candidate], left_alone: dict[str, str]) -> Any:
    """Return a forward hook that counts the calls and positions of a layer."""

    def hook(module: FactorizableLayer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        candidate = candidates.setdefault(name, Candidate(module))
        if isinstance(module, nn.Conv2d) and inputs[0].dim() != MAPS:
            left_alone[name] = "is applied to a single image without a batch dimension"
            return
        if type(module) not in PLAIN and not _computes_plainly(module, inputs[0]):
            left_alone[name] = f"is a {type(module).__name__}, which computes something else than its base class"
            return
        maps = isinstance(module, nn.Conv2d)
        candidate.positions_in += inputs[0].numel() // inputs[0].shape[1 if maps else -1]
        candidate.positions_out += output.numel() // output.shape[1 if maps else -1]
        candidate.calls += 1

    return hook


def _computes_plainly(layer: FactorizableLayer, x: Tensor) -> bool:
    """Return whether a subclass computes exactly what its base class in torch does, in eval and in train mode."""
    if isinstance(layer, nn.Conv2d):
        plain = nn.Conv2d._conv_forward(layer, x, layer.weight, layer.bias)
    else:
        plain = nn.Linear.forward(layer, x)
    mode = layer.training
    try:
        return all(torch.equal(layer.train(training).forward(x), plain) for training in (True, False))
    finally:
        layer.train(mode)
