"""Freezing early layers: which weights are fixed at which fraction of a run, without effect on the others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlpconv.errors import UsageError
from mlpconv.models import create_model
from mlpconv.models.base import Network
from mlpconv.training import Recipe
from mlpconv.training.freeze import freeze


def network(name: str) -> Network:
    torch.manual_seed(0)
    return create_model(name, num_classes=7, in_channels=3, norm="batch", width=0.25)


def resting(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize(("name", "layer"), [("nin_tiny", "blocks.0."), ("googlenet", "stem.0.")])
def test_the_first_convolution_is_frozen_before_its_layer(name: str, layer: str):
    model, everything = network(name), set(dict(network(name).named_parameters()))
    freeze(model, (0.3, 0.6), 0.29)
    assert not resting(model)
    freeze(model, (0.3, 0.6), 0.3)
    assert resting(model) == {
        f"{layer}{part}" for part in ("convs.0.weight", "convs.0.bias", "norms.0.weight", "norms.0.bias")
    }
    freeze(model, (0.3, 0.6), 0.6)
    assert resting(model) == {parameter for parameter in everything if parameter.startswith(layer)}


def test_one_fraction_freezes_the_first_convolution_alone():
    model = network("nin_tiny")
    freeze(model, (0.5,), 1.0)
    assert len(resting(model)) == 4


def test_a_frozen_layer_does_not_change_other_gradients():
    images = torch.randn(11, 3, 13, 17, generator=torch.Generator().manual_seed(1))
    plain, frozen = network("nin_tiny").train(), network("nin_tiny").train()
    freeze(frozen, (0.0, 0.0), 0.0)
    plain(images).square().sum().backward()
    frozen(images).square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), frozen.parameters(), strict=True):
        if name.startswith("blocks.0."):
            assert other.grad is None
        else:
            torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=0)
    for (_, one), (_, other) in zip(plain.named_buffers(), frozen.named_buffers(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)  # the norm's statistics follow as before


@pytest.mark.parametrize("shares", [(0.6, 0.3), (1.5,), (-0.1,), (0.1, 0.2, 0.3)])
def test_invalid_fractions_are_refused(shares: tuple[float, ...]):
    with pytest.raises(UsageError, match="one or two fractions of the run"):
        Recipe(freeze=shares)
