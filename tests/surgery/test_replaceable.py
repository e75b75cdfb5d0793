"""Modules of which a forward pass uses more than the output are kept; the others are folded."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from support.small_networks import assert_same, shaken
from torch import nn
from torch.nn import functional as F

from mlpconv.surgery import fold
from mlpconv.surgery.proof.replaceable import find_irreplaceable

IMAGE = (3, 11, 7)


class Net(nn.Module):
    """`steps` is the forward pass; the second convolution and norm equal the first and are always folded."""

    def __init__(self, steps: Callable[[Net, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.steps = steps
        self.conv, self.norm = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)
        self.other, self.other_norm, self.drop = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.steps(self, x) + self.other_norm(self.other(x))).mean((2, 3))


def channelwise(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.view(1, -1, 1, 1)


READ: dict[str, tuple[Callable[[Net, torch.Tensor], torch.Tensor], str]] = {
    "a weight": (lambda n, x: n.norm(n.conv(x)) + F.conv2d(x, n.conv.weight), "also reads conv.weight directly"),
    "a norm's weight": (
        lambda n, x: n.norm(n.conv(x)) * channelwise(n.norm.weight),
        "^the forward pass also reads norm.weight directly$",
    ),
    "its statistics": (
        lambda n, x: n.norm(n.conv(x)) * channelwise(n.norm.running_var), "also reads norm.running_var directly"
    ),
    "a number": (lambda n, x: n.norm(n.conv(x)) * n.norm.eps, "uses norm for more than its output"),
    "a class": (lambda n, x: n.norm(n.conv(x)) * isinstance(n.norm, nn.BatchNorm2d), "uses norm for more"),
    "no bias": (lambda n, x: n.norm(n.conv(x)) * (1 + (n.conv.bias is None)), "uses conv for more than its output"),
}  # fmt: skip


@pytest.mark.parametrize(("steps", "reason"), READ.values(), ids=READ.keys())
def test_an_irreplaceable_module_keeps_its_norm_and_others_are_folded(
    steps: Callable[[Net, torch.Tensor], torch.Tensor], reason: str
) -> None:
    net = shaken(Net(steps)).double()
    result = fold(net, IMAGE)
    assert_same(net, result.model, IMAGE)
    assert list(result.report.details["kept"]) == ["norm"]
    assert re.search(reason, result.report.details["kept"]["norm"])
    assert not isinstance(result.model.other_norm, nn.BatchNorm2d)


def test_a_dropout_whose_rate_is_read_is_kept() -> None:
    net = shaken(Net(lambda n, x: n.norm(n.conv(x)) * n.drop(x).mean((1, 2, 3), True) * n.drop.p)).double()
    result = fold(net, IMAGE)
    assert_same(net, result.model, IMAGE)
    assert isinstance(result.model.drop, nn.Dropout)
    assert not result.report.details["kept"]


def test_consecutive_layers_with_an_irreplaceable_one_are_kept() -> None:
    net = Net(lambda n, x: n.drop(n.conv(x)) + F.conv2d(x, n.conv.weight)).double().eval()
    net.drop = nn.Conv2d(5, 5, 1).double()
    result = fold(net, IMAGE)
    assert_same(net, result.model, IMAGE)
    assert isinstance(result.model.drop, nn.Conv2d)


def test_a_reason_is_reported_once() -> None:
    result = fold(shaken(Net(lambda n, x: n.norm(n.norm(n.conv(x))))), IMAGE)
    assert result.report.details["kept"] == {"norm": "norm is used more than once, or shares its weights"}
    branch = fold(shaken(Net(lambda n, x: n.norm(y := n.conv(x)) * y)), IMAGE)
    assert branch.report.details["kept"]["norm"].count("the output of conv has other consumers") == 1
    assert "what it normalises" not in branch.report.details["kept"]["norm"]


class Bent(nn.Module):
    """Norms between functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.two(F.relu(self.one(F.relu(x)))))


def test_norms_kept_for_one_reason_are_reported_together() -> None:
    (note,) = (note for note in fold(shaken(Bent()), IMAGE).report.notes if "stay" in note)
    assert note == (
        "2 batch norms stay: one, two (it follows relu, which is not a convolution or linear layer; it precedes relu, "
        "which is not a plain convolution or linear layer)."
    )


def test_irreplaceable_modules_are_found_and_the_model_is_unchanged() -> None:
    net = Net(lambda n, x: n.norm(n.conv(x)) * n.norm.eps).eval()
    modules = dict(net.named_modules())
    assert find_irreplaceable(net, ["conv", "norm", "other"], torch.randn(2, *IMAGE)) == ["norm"]
    assert dict(net.named_modules()) == modules


def test_nan_outputs_do_not_make_modules_irreplaceable() -> None:
    net = Net(lambda n, x: n.norm(n.conv(x)) * torch.full((5, 1, 1), torch.nan)).eval()
    assert find_irreplaceable(net, ["conv", "norm"], torch.randn(2, *IMAGE)) == []


def test_outputs_of_every_dtype_are_compared() -> None:
    net = Net(lambda n, x: n.norm(n.conv(x))).eval()
    whole = nn.ModuleDict({"net": net})
    whole.forward = lambda x: {"logits": net(x), "sure": net(x) > 0, "best": net(x).argmax(1)}  # type: ignore[assignment]
    assert find_irreplaceable(whole, ["net.conv", "net.norm"], torch.randn(2, *IMAGE)) == []
