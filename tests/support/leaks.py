"""Calls that bypass Python-level tracing, each traced in its own network.

Run as a program, in a subprocess, because such a call may crash the process; it prints one line of JSON per call.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.dlpack
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from mlpconv.errors import SurgeryError
from mlpconv.surgery.tracing.graph import trace
from support.wrapped import Lambda

Part = Callable[[Any, Tensor], Tensor]


class Swish(torch.autograd.Function):
    """EfficientNet's swish, whose custom gradient saves memory in training."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        gate = ctx.saved_tensors[0].sigmoid()
        return grad * gate * (1 + ctx.saved_tensors[0] * (1 - gate))


SWISH = Swish.apply


def filled(x: Tensor) -> Tensor:
    other = torch.zeros(x.shape)
    other.data = x
    return other


def without_overrides(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return torch.relu(x)


def written(x: Tensor) -> Tensor:
    torch.func.vmap(lambda image: image.mul_(2))(x)
    return x


TRACED: dict[str, Part] = {
    "autograd.Function": lambda m, x: Swish.apply(x),
    "reentrant checkpoint": lambda m, x: checkpoint(m.inner, x, use_reentrant=True),
    "checkpoint": lambda m, x: checkpoint(m.inner, x, use_reentrant=False),
    "checkpointed sequence": lambda m, x: checkpoint_sequential([m.inner, m.inner], 2, x, use_reentrant=False),
    "as_tensor": lambda m, x: torch.as_tensor(x) * 2,
    "asarray": lambda m, x: torch.asarray(x) * 2,
    "method of the class": lambda m, x: Tensor.relu(x),
    "parameter": lambda m, x: nn.Parameter(x) * 2,
    "private": lambda m, x: torch._C._nn.gelu(x),
    "operator": lambda m, x: torch.ops.aten.relu.default(x),
    "functional": lambda m, x: torch._from_functional_tensor(torch._to_functional_tensor(x)),
    "jit.fork": lambda m, x: torch.jit.wait(torch.jit.fork(torch.relu, x)),
}
"""Calls that are traced."""
ONE_STEP: dict[str, Part] = {
    "function bound before": lambda m, x: SWISH(x),
    "as_tensor of another format": lambda m, x: torch.as_tensor(x, dtype=torch.float64).float(),
    "tensor": lambda m, x: torch.tensor(x) * 2,
    "class": lambda m, x: torch.Tensor(x),
    "subclass": lambda m, x: torch.Tensor._make_subclass(torch.Tensor, x),
    "as_subclass": lambda m, x: x.as_subclass(torch.Tensor),
    "vmap": lambda m, x: torch.vmap(torch.relu)(x),
    "vmap in place": lambda m, x: written(x),
    "func.grad": lambda m, x: torch.func.grad(lambda y: y.square().sum())(x),
    "TorchScript": lambda m, x: DOUBLED(x),
    "set_": lambda m, x: torch.empty(0).set_(x),
    "without overrides": lambda m, x: without_overrides(x),
}
"""Calls that make their module a single node, and are rejected in the network's own forward."""
REFUSED: dict[str, Part] = {
    "data": lambda m, x: filled(x),
    "dlpack": lambda m, x: torch.from_dlpack(x),
    "capsule": lambda m, x: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(x)),
    "numpy": lambda m, x: torch.from_numpy(x.detach().numpy()),
    "FloatTensor": lambda m, x: torch.FloatTensor(x),
    "nested": lambda m, x: torch.nested.nested_tensor([x[0], x[1]]).to_padded_tensor(0.0),
}
"""Calls that need storage, which meta tensors lack."""
IMAGES = torch.linspace(-1, 1, 2 * 3 * 7 * 5).reshape(2, 3, 7, 5)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    DOUBLED = torch.jit.trace(lambda x: x * 2, (IMAGES,))


def network(part: Part, *, inside: bool) -> nn.Module:
    """Return a network that makes the call in its own forward, or `inside` a submodule."""
    inner = nn.Conv2d(3, 3, 1)
    if inside:
        return nn.Sequential(nn.Conv2d(3, 3, 1), Lambda(part, inner=inner), nn.ReLU()).eval()
    return Lambda(lambda m, x: part(m, m.conv(x)), conv=nn.Conv2d(3, 3, 1), inner=inner).eval()


def outcome(model: nn.Module) -> tuple[str, bool, list[str]]:
    """Trace a network; return the error, whether the graph is equivalent, and the modules that it calls."""
    try:
        graph = trace(model, (3, 7, 5))
    except SurgeryError as error:
        return str(error), False, []
    with torch.no_grad():
        same = torch.equal(graph(IMAGES), model(IMAGES))
    return "", same, [str(node.target) for node in graph.graph.find_nodes(op="call_module")]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name, part in (TRACED | ONE_STEP | REFUSED).items():
        for inside in (False, True):
            print(json.dumps([name, inside, *outcome(network(part, inside=inside))]), flush=True)
