"""Profiling only reads the model, and rejects models that it cannot trace, with the reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.wrapped import Lambda
from torch import Tensor, nn

from mlpconv.analysis import profile
from mlpconv.errors import UsageError


class Stateful(nn.Module):
    """State that a careless profiler would change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.scale = torch.tensor([2.0])
        self.heard: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.drop(self.norm(self.conv(x))) * self.scale
        self.heard.append(tuple(x.shape))
        return x


def test_the_model_is_untouched() -> None:
    model = Stateful().train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    objects = {name: id(value) for name, value in model.named_parameters()}
    profile(model, (3, 9, 9))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert {name: id(value) for name, value in model.named_parameters()} == objects
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.heard == []
    assert torch.is_grad_enabled()


def test_weights_take_no_memory() -> None:
    """The weights would take four terabytes."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(1_000_000, 1_000_000))
    assert profile(model, (1, 1000, 1000)).totals.macs == 10**12


def test_computed_and_tied_weights_are_counted() -> None:
    """Weight norm computes the weight in the forward pass; tied weights count once."""
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    )
    model[2].weight = model[1].weight
    totals = profile(model, (3, 9, 9)).totals
    assert totals.params == sum(p.numel() for p in model.parameters())
    assert totals.unused_params == 0
    assert totals.macs == 49 * (4 * 27 + 2 * 16)


def test_transformers_are_profiled() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 4, 4)
            self.first = nn.Parameter(torch.zeros(1, 1, 8))
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.first.expand(len(x), -1, -1), tokens], 1)
            return self.layer(tokens)[:, 0]

    result = profile(Tokens(), (3, 16, 20))
    joined = result["cat"].field
    assert joined is not None
    assert [axis.size for axis in joined] == [4, 4]
    assert result.field is not None
    assert all(axis.whole for axis in result.field)
    assert result.totals.unused_params == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.conv(x - x.mean()),
        lambda m, x: m.conv(x / x.max()),
        lambda m, x: m.conv((x - x.mean()) / x.std()),
        lambda m, x: m.conv(x).square().mean(),
    ],
)
def test_a_global_statistic_sees_the_whole_image(function: Any) -> None:
    result = profile(Lambda(function, conv=nn.Conv2d(3, 4, 3)), (3, 9, 7))
    assert result.totals.macs == 7 * 5 * 4 * 27
    assert result.field is not None
    assert all(axis.whole for axis in result.field)


def test_a_failing_forward_names_its_module() -> None:
    model = Lambda(lambda m, x: m.conv(x).view(-1, 5), conv=nn.Conv2d(3, 4, 3))
    try:
        raise KeyError  # an unrelated error that the caller is handling
    except KeyError:
        assert "in its forward (Lambda): shape '[-1, 5]' is invalid" in refused(nn.Sequential(model)[0])
    assert "in 0 (Lambda): shape" in refused(nn.Sequential(model, nn.ReLU()))


def test_accepted_batch_sizes_are_named() -> None:
    model = Lambda(lambda m, x: m.conv(x).mean((2, 3)).view(-1, 3, 4).amax(1), conv=nn.Conv2d(3, 4, 3))
    assert "It accepts batch sizes 3, 6 and not 1; pass a network that processes" in refused(model)


# ---- errors


class Curious(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 3), _Peek())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class _Peek(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def refused(model: Any, shape: Any = (3, 9, 9), **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        profile(model, shape, **options)
    return str(caught.value)


def test_errors_name_the_reason_and_the_module() -> None:
    assert "inner.1" in refused(Curious())
    assert "3x9x9" in refused(nn.Conv2d(5, 4, 3))
    assert "lazy" in refused(nn.LazyConv2d(4, 3))
    assert "Module" in refused("resnet50")
    assert "(3, 32, 32)" in refused(nn.Conv2d(3, 4, 3), (3, 9))
    assert "(3, 32, 32)" in refused(nn.Conv2d(3, 4, 3), (3, 0, 9))
    assert "(3, 32, 32)" in refused(nn.Conv2d(3, 4, 3), 32)
    assert "batch" in refused(nn.Conv2d(3, 4, 3), batch=0)
    locked = nn.Conv2d(3, 4, 3)
    locked.held = (line for line in ())  # a generator cannot be copied
    assert "copied" in refused(locked)


def test_an_error_leaves_no_hooks() -> None:
    model = Curious()
    refused(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert profile(nn.Conv2d(3, 4, 3), (3, 9, 9)).totals.macs
