"""Receptive fields by gradients, as an independent reference: a cell sees the pixels with a non-zero derivative.

Weights are replaced by positive random numbers, max pooling by average pooling, and ReLUs by the identity, so that no
terms cancel or vanish. Computation is in float64, as the gradient along the longest path through fifty layers is tiny.
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
"""The first and last pixel along an axis; (0, -1) for none."""
STRAIGHT = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh, F.hardswish}
STRAIGHT |= {F.silu, F.gelu, torch._C._nn.gelu}
POOLS = {F.max_pool2d, torch.max_pool2d}


class Straight(TorchFunctionMode):
    """Replace ReLUs by the identity, and max pooling by average pooling over the same windows."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in STRAIGHT:
            return args[0] * 1.0
        if func in POOLS:
            names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            options = dict(zip(names, args[1:], strict=False)) | kwargs
            options = {name: options[name] for name in names if name in options and name != "dilation"}
            return F.avg_pool2d(args[0], **options)
        return func(*args, **kwargs)


def made_positive(model: nn.Module, power: float = 1.0) -> nn.Module:
    """Return a copy of the network with positive random weights, each divided by its fan-in to a power."""
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
    """Return the size of the network's feature maps, and the image rows and columns that the given cells see.

    `cells` may have negative indices. All channels of a cell are included.
    """
    source = torch.Generator().manual_seed(1)
    image = torch.rand((1, *shape), generator=source, dtype=torch.float64).add(0.5).requires_grad_()
    with Straight():
        maps = made_positive(model, power)(image)
    mix = torch.rand(maps.shape[1], generator=source, dtype=torch.float64) + 0.5
    spans = []
    for row, column in cells:
        (gradient,) = torch.autograd.grad((maps[0, :, row, column] * mix).sum(), image, retain_graph=True)
        mask = (gradient[0] != 0).any(0)
        spans.append((_span(mask.any(1)), _span(mask.any(0))))
    return (maps.shape[2], maps.shape[3]), spans


def _span(mask: Tensor) -> Span:
    indices = mask.nonzero().flatten().tolist()
    return (indices[0], indices[-1]) if indices else (0, -1)
