"""Replacement modules: the same name and the same weights in another shape."""

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
    """Changes to the network's modules, shared by the eval graph and the training graph."""

    root: nn.Module
    """The copy of the network to change, with its weights."""
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """Replacement modules by name."""
    places: set[str] = field(default_factory=set)
    """Descriptions of replaced function calls."""
    rounded: bool = False
    """Whether new weights were computed and rounded to the network's dtype."""
    notes: list[str] = field(default_factory=list)
    output: str = ""
    """Name of the output that holds the logits; empty for a network with one output."""

    @property
    def names(self) -> list[str]:
        """Names of everything that was replaced."""
        return sorted({*self.modules, *self.places})

    def note(self, sentence: str) -> None:
        """Add a note, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def put(self, name: str, make: Callable[[], nn.Module]) -> None:
        """Replace a module unless the other mode's graph already did."""
        if name not in self.modules:
            self.modules[name] = make()


def as_convolution(linear: nn.Linear, layout: Layout) -> nn.Conv2d:
    """Return the convolution on maps that equals a linear layer on their elements."""
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
    conv: nn.Conv2d = nn.utils.skip_init(
        nn.Conv2d, channels, linear.out_features, kernel, dilation=layout.dilation, bias=linear.bias is not None,
        device=weight.device, dtype=weight.dtype,
    )  # fmt: skip
    conv.weight = nn.Parameter(weight.reshape(conv.weight.shape), linear.weight.requires_grad)
    if linear.bias is not None:
        conv.bias = nn.Parameter(linear.bias.detach(), linear.bias.requires_grad)
    return conv


def as_map_norm(norm: nn.BatchNorm1d) -> nn.BatchNorm2d:
    """Return a BatchNorm2d that shares the parameters and statistics of a BatchNorm1d."""
    map_norm = nn.BatchNorm2d(norm.num_features, device="meta")
    map_norm.__dict__.update(copy.copy(norm).__dict__)
    return map_norm
