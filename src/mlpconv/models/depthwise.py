"""A depthwise convolution whose gradient is fast in bfloat16 on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["depthwise"]


def depthwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Apply a depthwise convolution: (N, C, H, W) -> (N, C, h, w).

    oneDNN's gradient of one in bfloat16 takes five times as long as in float32, so under autocast on a CPU the gradient
    is computed in float32.
    """
    rounded = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    if not rounded or torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return cast("Tensor", conv(x))
    apply = cast("Callable[..., Tensor]", _Depthwise.apply)
    return apply(x, conv.weight, conv.bias, conv.stride, conv.padding)


class _Depthwise(torch.autograd.Function):
    """Forward in bfloat16, backward in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings, ctx.has_bias = (stride, padding), bias is not None
        low = torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            rounded = None if bias is None else bias.to(low)
            return F.conv2d(x.to(low), weight.to(low), rounded, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (stride, padding), groups = ctx.saved_tensors, ctx.settings, len(ctx.saved_tensors[1])
        grad = grad.float().contiguous(memory_format=torch.channels_last)
        gradients = torch.ops.aten.convolution_backward(
            grad, x.float(), weight.float(), [groups] if ctx.has_bias else None, stride, padding, (1, 1), False, (0, 0),
            groups, ctx.needs_input_grad[:3],
        )  # fmt: skip
        kinds = (x.dtype, weight.dtype, weight.dtype)
        return *(g if g is None else g.to(kind) for g, kind in zip(gradients, kinds, strict=True)), None, None
