"""Autograd functions, checkpoints and compiled functions in a forward pass."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support.leaks import SWISH, Swish
from support.wrapped import Lambda
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlpconv.analysis import profile
from mlpconv.errors import SurgeryError
from mlpconv.surgery import convolutionalize, fold, pool_head
from mlpconv.surgery.tracing.graph import trace
from mlpconv.surgery.tracing.proxy import TensorProxy

SHAPE = (3, 9, 7)


@pytest.fixture(autouse=True)
def no_crash() -> None:
    """PyTorch's C++ code reads a proxy as a tensor: one that is none would crash this process, and the suite."""
    assert issubclass(TensorProxy, Tensor)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Straight(torch.autograd.Function):
    """Round, with twice the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, digits: int = 0) -> Tensor:
        return x.round(decimals=digits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * 2, None


class Rounded(nn.Module):
    """Call the function in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(Straight.apply(self.conv(x), 1).mean((2, 3)))


@pytest.mark.parametrize("operation", [pool_head, convolutionalize])
def test_an_autograd_function_keeps_its_gradient(operation: Any) -> None:
    model = Rounded().eval()
    changed = operation(model, SHAPE, latency=False).model
    for network in (changed, copy.deepcopy(changed), pickle.loads(pickle.dumps(changed))):
        for each in (model, network):
            each.zero_grad()
            each(images(2, *SHAPE)).square().sum().backward()
        assert torch.allclose(network.conv.weight.grad, model.conv.weight.grad, rtol=1e-4)
        assert float(network.conv.weight.grad.abs().max()) > 0


def test_an_autograd_function_is_one_step_with_its_arguments() -> None:
    graph = trace(Rounded(), SHAPE).graph
    (step,) = [node for node in graph.nodes if getattr(node.target, "function", None) is Straight]
    assert step.args[1] == 1
    assert "Straight" in graph.python_code("self").src


def test_norms_around_an_autograd_function_are_folded() -> None:
    norm = nn.BatchNorm2d(6).eval()
    norm.running_var.fill_(3.0)
    model = Lambda(lambda m, x: m.fc(Swish.apply(m.norm(m.conv(x))).mean((2, 3))), norm=norm)
    model.conv, model.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)
    assert fold(model.eval(), SHAPE).report.changed == ("conv", "norm")


def test_an_apply_bound_before_tracing_is_rejected() -> None:
    with pytest.raises(SurgeryError, match=r"gradients off in an autograd\.Function whose apply"):
        trace(Lambda(lambda m, x: SWISH(x)), SHAPE)


def test_patched_functions_are_restored_after_tracing() -> None:
    before = vars(torch.autograd.Function)["apply"]
    trace(Rounded(), SHAPE)
    with pytest.raises(SurgeryError):
        trace(Lambda(lambda m, x: Swish.apply(x).item()), SHAPE)
    assert vars(torch.autograd.Function)["apply"] is before
    assert torch.equal(Swish.apply(images(3)), images(3) * images(3).sigmoid())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_traced_into(reentrant: bool) -> None:
    trunk = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    model = Lambda(lambda m, x: m.fc(checkpoint(m.trunk, x, use_reentrant=reentrant).mean((2, 3))), trunk=trunk)
    model.fc = nn.Linear(6, 5)
    assert fold(model.eval(), SHAPE).report.changed == ("trunk.0", "trunk.1")
    changed = convolutionalize(model, SHAPE, latency=False).model
    assert changed(images(1, 3, 11, 9)).shape == (1, 5, 3, 3)
    gradients = []
    for each in (model, changed):
        batch = images(2, *SHAPE).requires_grad_()
        each(batch).square().sum().backward()
        gradients.append(batch.grad)
    assert torch.allclose(*gradients, atol=1e-6)


def test_compiled_functions_are_traced_and_profiled_uncompiled() -> None:
    compiled = []

    def backend(graph: Any, inputs: object) -> Any:
        compiled.append(graph)
        return graph.forward

    model = Lambda(lambda m, x: m.fc(m.twice(m.conv(x)).mean((2, 3))), conv=nn.Conv2d(3, 6, 3), fc=nn.Linear(6, 5))
    model.twice = torch.compile(lambda x: x.relu() * 2, backend=backend)
    names = [str(node.target) for node in trace(model, SHAPE).graph.nodes if node.op == "call_method"]
    assert names == ["relu", "mean"]
    assert profile(model, SHAPE).totals.macs == 6 * 7 * 5 * 27 + 30
    plain = nn.Sequential(torch.compile(nn.Conv2d(3, 6, 3), backend=backend), nn.ReLU())
    assert [row.name for row in profile(plain, SHAPE).rows] == ["0", "1"]
    assert compiled == []
    with pytest.raises(
        SurgeryError, match=r"0 \(OptimizedModule\) is compiled by torch.compile: restore .* ._orig_mod"
    ):
        trace(plain, SHAPE)
