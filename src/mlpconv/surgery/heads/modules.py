"""What becomes of a network's modules: others of the same name, with the same numbers in another shape."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn

from mlpconv.surgery.heads.layout import Layout

__all__ = ["ModuleEdits", "as_convolution", "as_map_norm"]


@dataclass
class ModuleEdits:
    """What becomes of the network's modules: one set for the graphs of both modes."""

    root: nn.Module
    """The copy that is changed, with its numbers."""
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """Modules that take the place of those of their name."""
    places: set[str] = field(default_factory=set)
    """Functions in a forward that are others now: where they stand."""
    rounded: bool = False
    """Whether new weights were worked out, and rounded to the network's number format."""
    notes: list[str] = field(default_factory=list)
    output: str = ""
    """The place of the logits in what the network returns; empty for a network of one output."""

    @property
    def names(self) -> list[str]:
        """Everything that is another thing now."""
        return sorted({*self.modules, *self.places})

    def note(self, sentence: str) -> None:
        """Say something once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def put(self, name: str, make: Callable[[], nn.Module]) -> None:
        """Replace a module, unless the graph of the other mode has done so."""
        if name not in self.modules:
            self.modules[name] = make()


def as_convolution(linear: nn.Linear, layout: Layout) -> nn.Conv2d:
    """The convolution that does on maps what a linear layer (which it replaces) does on their elements."""
    channels, height, width = layout.size
    with torch.no_grad():
        weight = linear.weight
        if not layout.plain:
            weight = linear.weight.new_zeros((linear.out_features, channels * height * width))
            weight.index_add_(1, layout.index.to(weight.device), linear.weight)
        kernel: tuple[int, int] = (height, width)
        weight = weight.detach().reshape(linear.out_features, channels, height * width)
        if layout.mix is not None:
            rows, columns = cast("tuple[int, int]", layout.base.meta["val"].shape[2:])
            weight = (weight.cpu().double() @ layout.mix).to(weight)
            kernel = (rows, columns)
    made: nn.Conv2d = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d, channels, linear.out_features, kernel, dilation=layout.dilation, bias=linear.bias is not None,
        device=weight.device, dtype=weight.dtype,
    )  # fmt: skip
    made.weight = nn.Parameter(weight.reshape(made.weight.shape), linear.weight.requires_grad)
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.detach(), linear.bias.requires_grad)
    return made


def as_map_norm(norm: nn.BatchNorm1d) -> nn.BatchNorm2d:
    """The same norm for maps of one cell: the same parameters and statistics, not copies."""
    made = nn.BatchNorm2d(norm.num_features, device="meta")
    made.__dict__.update(copy.copy(norm).__dict__)
    return made
