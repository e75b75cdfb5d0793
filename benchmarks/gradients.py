"""Receptive fields by gradients, without any bookkeeping: a pixel is seen where a cell's derivative is not zero.

Weights are made positive and random, maxima averages, and rectifiers straight lines, so that nothing cancels and
nothing is asleep: what is left is the graph. Everything is computed in float64, as the gradient along the longest way
through fifty layers is a very small number.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Span", "Straight", "made_positive", "seen_by"]

Span = tuple[int, int]
"""The first and the last pixel along an axis; (0, -1) for none."""
STRAIGHT = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh, F.hardswish}
STRAIGHT |= {F.silu, F.gelu, torch._C._nn.gelu}
POOLS = {F.max_pool2d, torch.max_pool2d}


class Straight(TorchFunctionMode):
    """Rectifiers pass everything on, maximum pools take the average of the same windows."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in STRAIGHT:
            return args[0] * 1.0
        if func in POOLS:
            names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            given = dict(zip(names, args[1:], strict=False)) | kwargs
            given = {name: given[name] for name in names if name in given and name != "dilation"}
            return F.avg_pool2d(args[0], **given)
        return func(*args, **kwargs)


def made_positive(model: nn.Module, power: float = 1.0) -> nn.Module:
    """A copy of the network with positive weights, each over (the numbers it is summed with) to a power."""
    model = copy.deepcopy(model).double().eval()
    source = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
        parameter.data = (torch.rand(parameter.shape, generator=source, dtype=torch.float64) + 0.5) / fan**power
        parameter.requires_grad_(False)
    return model


def seen_by(
    model: nn.Module, shape: tuple[int, int, int], cells: Sequence[tuple[int, int]], power: float = 1.0
) -> tuple[tuple[int, int], list[tuple[Span, Span]]]:
    """Rows and columns of the network's maps, and for some cells the rows and columns of the image that they see.

    `cells` may count from the end, as indices do. Each cell is looked at in all of its channels.
    """
    source = torch.Generator().manual_seed(1)
    image = torch.rand((1, *shape), generator=source, dtype=torch.float64).add(0.5).requires_grad_()
    with Straight():
        maps = made_positive(model, power)(image)
    mix = torch.rand(maps.shape[1], generator=source, dtype=torch.float64) + 0.5
    found = []
    for row, column in cells:
        (gradient,) = torch.autograd.grad((maps[0, :, row, column] * mix).sum(), image, retain_graph=True)
        there = (gradient[0] != 0).any(0)
        found.append((_span(there.any(1)), _span(there.any(0))))
    return (maps.shape[2], maps.shape[3]), found


def _span(there: Tensor) -> Span:
    places = there.nonzero().flatten().tolist()
    return (places[0], places[-1]) if places else (0, -1)
