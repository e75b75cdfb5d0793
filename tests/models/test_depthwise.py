"""The depthwise convolution of bfloat16 training: the same outputs, and gradients as exact as float32 gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mlpconv
from mlpconv.models.depthwise import depthwise

CHANNELS = 13


def conv(kernel: int, stride: int) -> nn.Conv2d:
    torch.manual_seed(kernel)
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, kernel // 2, groups=CHANNELS, bias=stride == 1)


def gradients(layer: nn.Conv2d, x: torch.Tensor, own: bool) -> list[torch.Tensor]:
    x = x.clone().requires_grad_(True)
    (depthwise(x, layer) if own else layer(x)).float().square().sum().backward()
    return [x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
def test_outputs_are_those_of_bfloat16_and_gradients_those_of_float32(kernel: int, stride: int) -> None:
    x = torch.randn(3, CHANNELS, 11, 17).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(depthwise(x, conv(kernel, stride)), conv(kernel, stride)(x), rtol=0, atol=0)
        found = gradients(conv(kernel, stride), x, own=True)
    expected = gradients(conv(kernel, stride), x, own=False)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02 * float(other.abs().max()))


def test_a_frozen_convolution_gives_the_gradient_of_its_input_alone() -> None:
    layer, x = conv(3, 1).requires_grad_(False), torch.randn(2, CHANNELS, 7, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        depthwise(x, layer).float().sum().backward()
    assert x.grad is not None and layer.weight.grad is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "no gradient"])
def test_efficientnet_lite_uses_it_where_it_is_faster(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    applied = []
    apply = mlpconv.models.depthwise._Depthwise.apply
    monkeypatch.setattr(mlpconv.models.depthwise._Depthwise, "apply", lambda *given: applied.append(1) or apply(*given))
    model = mlpconv.create_model("efficientnet_lite0", width=0.25, num_classes=3, norm=None).eval()
    with torch.autocast("cpu", enabled=precision != "float32"), torch.set_grad_enabled(precision != "no gradient"):
        model(torch.randn(1, 3, 32, 32))
    assert len(applied) == (16 if precision == "bfloat16" else 0)
