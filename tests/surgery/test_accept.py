"""Weights that hooks compute before each pass are copied, or rejected with the remedy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.graphs import randomised
from torch import Tensor, nn
from torch.nn.utils import prune, remove_weight_norm, spectral_norm

from mlpconv.errors import SurgeryError
from mlpconv.surgery import convolutionalize, deepen, fold, pool_head
from mlpconv.surgery.tracing.accept import deep_copy, is_parametrized

SHAPE = (3, 9, 7)


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but still in use
        return nn.utils.weight_norm(layer)


HOOKED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "weight norm": (old_weight_norm, "torch.nn.utils.remove_weight_norm"),
    "spectral norm": (spectral_norm, "torch.nn.utils.remove_spectral_norm"),
    "pruning": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "torch.nn.utils.prune.remove"),
    "pruning twice": (
        lambda layer: [prune.random_unstructured(layer, "weight", 0.3) for _ in range(2)],
        "torch.nn.utils.prune.remove",
    ),
}


def network(hook: Callable[[nn.Module], object], *, on: int) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    )
    model = randomised(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 5))).eval()
    hook(model[on])
    return model.eval()


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


OPERATIONS: dict[str, Callable[[nn.Module], Any]] = {
    "fold": lambda model: fold(model, SHAPE),
    "pool_head": lambda model: pool_head(model, SHAPE, latency=False),
    "convolutionalize": lambda model: convolutionalize(model, SHAPE, latency=False),
    "deepen": lambda model: deepen(model, "3", input_shape=SHAPE),
}


@pytest.mark.parametrize("name", sorted(HOOKED))
@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_a_hook_still_computes_its_weight(name: str, operation: str) -> None:
    model = network(HOOKED[name][0], on=0)
    before = model(images(2, *SHAPE)).detach()
    changed = OPERATIONS[operation](model).model
    with torch.no_grad():
        assert torch.allclose(changed(images(2, *SHAPE)), before, atol=1e-4)
        for parameter in changed.get_submodule("0").parameters():
            parameter.zero_()
        assert torch.allclose(model(images(2, *SHAPE)), before, atol=1e-6)
    assert is_parametrized(changed.get_submodule("0"))


def test_a_copy_computes_its_weight_from_its_own_parameters() -> None:
    model = network(old_weight_norm, on=0)
    copy = deep_copy(model)
    with torch.no_grad():
        copy[0].weight_g.mul_(2)
        copy[0].bias.zero_()
        model[0].bias.zero_()
        assert torch.allclose(copy[0](images(1, *SHAPE)), 2 * model[0](images(1, *SHAPE)), atol=1e-5)
    assert remove_weight_norm(copy[0]).weight.is_leaf


def test_a_tensor_with_autograd_history_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model[0].last = model[0].weight * 2
    with pytest.raises(
        SurgeryError, match=r"cannot be copied, .*: 0\.last was computed with gradients, .* detach it\."
    ):
        deep_copy(model)


@pytest.mark.parametrize("operation", [pool_head, convolutionalize])
@pytest.mark.parametrize("name", sorted(HOOKED))
def test_a_head_with_a_weight_hook_is_rejected_with_the_remedy(name: str, operation: Any) -> None:
    hook, cure = HOOKED[name]
    with pytest.raises(SurgeryError, match=rf"6 \(Linear\) .* before each forward pass: call {cure} first\."):
        operation(network(hook, on=6), SHAPE, latency=False)
