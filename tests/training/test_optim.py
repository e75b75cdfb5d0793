"""Optimizers: learning rates per group, steps against NumPy, properties of Muon, and a bit-exact state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mlpconv.models import create_model
from mlpconv.models.base import Network
from mlpconv.training import Recipe, find_recipe
from mlpconv.training.optim import Muon, Optimizers, make_optimizers, orthogonal, parameter_groups

MUON_STEPS = Muon([nn.Parameter(torch.zeros(1, 1))], lr=1.0).defaults["steps"]
PRIMES = [(2, 3), (7, 5), (31, 47), (47, 31), (13, 211), (1, 17), (17, 1)]


def network(norm: str | None = None, seed: int = 0, head: str = "gap") -> Network:
    torch.manual_seed(seed)
    options: dict[str, Any] = {"head": head, "size": (11, 11)} if head != "gap" else {}
    model = create_model("nin_tiny", num_classes=7, in_channels=3, width=0.5, norm=norm, **options)
    return model.to(memory_format=torch.channels_last)


def give_gradients(model: nn.Module, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=draw))


def rates(optimizers: Optimizers, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Return learning rate and weight decay of every parameter by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group.get("weight_decay", 0.0))
        for part in optimizers.optimizers
        for group in part.param_groups
        for parameter in group["params"]
    }


# --- groups


@pytest.mark.parametrize(
    ("data", "rate", "last", "decay"), [("cifar10", 0.1, 0.01, 1e-4), ("cifar100", 0.02, 0.02, 5e-4)]
)
def test_the_groups_have_the_learning_rates_of_the_paper(data: str, rate: float, last: float, decay: float):
    recipe = find_recipe("paper", data)
    model = create_model(recipe.model, width=0.1)
    optimizers = make_optimizers(model, recipe)
    optimizers.set_lr(recipe.lr)
    found = rates(optimizers, model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    end = {id(model.last_layer.weight), id(model.last_layer.bias)}
    for name, parameter in model.named_parameters():
        scale = last if id(parameter) in end else rate
        wanted = (2 * scale, 0.0) if parameter.ndim == 1 else (scale, decay)
        assert found[name] == pytest.approx(wanted, rel=1e-12), name
    assert len(set(found.values())) == (4 if last != rate else 2)


def test_norms_have_the_learning_rate_of_biases_and_no_decay():
    model = network(norm="batch")
    optimizers = make_optimizers(model, Recipe(lr=0.1, bias_lr=3.0, last_lr=0.5, weight_decay=0.01))
    optimizers.set_lr(0.1)
    found = rates(optimizers, model)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for name in norms:
        assert found[f"{name}.weight"] == found[f"{name}.bias"] == (pytest.approx(0.3), 0.0)


def test_the_last_layer_is_the_linear_one_of_a_fully_connected_head():
    model = network(head="fc")
    optimizers = make_optimizers(model, Recipe(lr=1.0, last_lr=0.1))
    optimizers.set_lr(1.0)
    slow = {name for name, (rate, _) in rates(optimizers, model).items() if rate < 0.5}
    assert slow == {"head.1.weight", "head.1.bias"}


def test_muon_updates_hidden_convolutions_and_sgd_the_rest():
    model = network(norm="batch")
    muon, rest = make_optimizers(model, Recipe(optimizer="muon", lr=0.06)).optimizers
    moved = {id(parameter) for group in muon.param_groups for parameter in group["params"]}
    convolutions = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert moved == {id(weight) for weight in convolutions[:-1]}
    beside = {id(parameter) for group in rest.param_groups for parameter in group["params"]}
    assert beside == {id(parameter) for parameter in model.parameters()} - moved


def test_frozen_parameters_are_in_no_group():
    model = network()
    model.first_conv.weight.requires_grad_(False)
    names = rates(make_optimizers(model, Recipe()), model)
    assert "blocks.0.convs.0.weight" not in names
    assert len(names) == len(list(model.parameters())) - 1


# --- a step


@pytest.mark.parametrize("nesterov", [True, False])
def test_an_sgd_step_follows_its_formula(nesterov: bool):
    recipe = Recipe(lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.03, bias_lr=2.0, last_lr=0.1)
    model = network()
    optimizers = make_optimizers(model, recipe)
    wanted = {name: parameter.detach().numpy().astype(np.float64) for name, parameter in model.named_parameters()}
    momentum = {name: np.zeros_like(value) for name, value in wanted.items()}
    for step, rate in enumerate((0.1, 0.05, 0.02)):
        give_gradients(model, step)
        optimizers.set_lr(rate)
        for name, parameter in model.named_parameters():
            weight = parameter.ndim > 1
            scale = rate * (1 if weight else 2) * (0.1 if name.startswith("blocks.2.convs.2") else 1)
            gradient = parameter.grad.numpy() + (0.03 if weight else 0) * wanted[name]
            momentum[name] = gradient if step == 0 else 0.9 * momentum[name] + gradient
            wanted[name] -= scale * (gradient + 0.9 * momentum[name] if nesterov else momentum[name])
        optimizers.step()
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), wanted[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_sgd_without_momentum_is_plain_sgd():
    model = network()
    optimizers = make_optimizers(model, Recipe(momentum=0.0, nesterov=True, lr=0.5, weight_decay=0.0))
    before = model.first_conv.weight.detach().clone()
    give_gradients(model, 0)
    optimizers.set_lr(0.5)
    optimizers.step()
    torch.testing.assert_close(model.first_conv.weight.detach(), before - 0.5 * model.first_conv.weight.grad)


# --- Muon


@pytest.mark.parametrize(("rows", "columns"), PRIMES)
def test_orthogonal_brings_singular_values_near_one(rows: int, columns: int):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns), dtype=torch.float64)
    result = orthogonal(matrix * 1e-3, MUON_STEPS)
    u, _, v = np.linalg.svd(matrix.numpy(), full_matrices=False)
    assert result.shape == matrix.shape
    found = np.linalg.svd(result.numpy(), compute_uv=False)
    assert found.min() > 0.5
    assert found.max() < 1.5
    # The directions are those of the matrix: it is moved towards the nearest orthogonal one, u @ v.
    nearness = (result.numpy() * (u @ v)).sum() / min(rows, columns)
    assert 0.5 < nearness < 1.5


@pytest.mark.parametrize("size", [(7, 5, 3, 3), (5, 47, 1, 1), (31, 3, 5, 5)])
def test_muon_keeps_the_norm_and_steps_by_its_learning_rate(size: tuple[int, ...]):
    draw = torch.Generator().manual_seed(3)
    weight = nn.Parameter(torch.randn(size, generator=draw).contiguous(memory_format=torch.channels_last))
    start = weight.detach().clone()
    optimizer = Muon([weight], lr=0.01)
    for _ in range(5):
        before = weight.detach().clone()
        weight.grad = torch.empty_like(weight).copy_(torch.randn(size, generator=draw))
        optimizer.step()
        assert weight.norm().item() == pytest.approx(start.norm().item(), rel=1e-5)
        moved = ((weight.detach() - before).norm() / start.norm()).item()
        assert 0.005 < moved < 0.011  # lr, less what putting the norm back takes
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_muon_step_follows_its_formula(nesterov: bool):
    draw = torch.Generator().manual_seed(5)
    weight = nn.Parameter(torch.randn(7, 3, 3, 3, generator=draw))
    optimizer = Muon([weight], lr=0.03, momentum=0.8, nesterov=nesterov)
    wanted = weight.detach().flatten(1).numpy().astype(np.float64)
    norm, momentum = np.linalg.norm(wanted), np.zeros_like(wanted)
    for _ in range(3):
        weight.grad = torch.randn(7, 3, 3, 3, generator=draw)
        gradient = weight.grad.flatten(1).numpy().astype(np.float64)
        momentum = 0.8 * momentum + 0.2 * gradient
        x = 0.2 * gradient + 0.8 * momentum if nesterov else momentum
        x = x / np.linalg.norm(x)
        for _ in range(MUON_STEPS):  # the quintic, by the singular values
            u, s, v = np.linalg.svd(x, full_matrices=False)
            x = u * (3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5) @ v
        wanted = wanted - 0.03 * norm * x / np.linalg.norm(x)
        wanted *= norm / np.linalg.norm(wanted)
        optimizer.step()
    np.testing.assert_allclose(weight.detach().flatten(1).numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_muon_descends_with_momentum():
    weight = nn.Parameter(torch.eye(5)[:, :, None, None].clone())
    target = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))[0][:, :, None, None]
    optimizer = Muon([weight], lr=0.05)
    losses = []
    for _ in range(80):
        loss = (weight - target).square().sum()
        weight.grad = torch.autograd.grad(loss, weight)[0]
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0]
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert not torch.equal(weight.detach(), before)  # the momentum moves it on


def test_a_weight_without_a_gradient_or_with_a_zero_one_stays_finite():
    still, flat = nn.Parameter(torch.ones(3, 2, 1, 1)), nn.Parameter(torch.ones(3, 2, 1, 1))
    optimizer = Muon([still, flat], lr=0.1)
    flat.grad = torch.zeros_like(flat)
    optimizer.step()
    assert torch.equal(still, torch.ones(3, 2, 1, 1))
    torch.testing.assert_close(flat.detach(), torch.ones(3, 2, 1, 1))


# --- the state


@pytest.mark.parametrize(
    "settings", [{"optimizer": "sgd"}, {"optimizer": "adamw"}, {"optimizer": "muon"}, {"momentum": 0.0}]
)
def test_a_restored_state_gives_a_bit_identical_step(settings: dict[str, Any]):
    recipe = Recipe(norm="batch", lr=0.01, **settings)
    model = network(norm="batch")
    optimizers = make_optimizers(model, recipe)
    for step in range(3):
        give_gradients(model, step)
        optimizers.set_lr(0.01 / (step + 1))
        optimizers.step()
    kept = {name: value.clone().contiguous() for name, value in optimizers.tensors().items()}  # as a file holds them
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    other = network(norm="batch", seed=1)
    other.load_state_dict(weights)
    restored = make_optimizers(other, recipe)
    restored.load_tensors(kept)
    again = restored.tensors()
    assert set(again) == set(kept)
    assert bool(kept) == (settings != {"momentum": 0.0})
    for name, value in kept.items():
        assert torch.equal(again[name], value), name
        assert again[name].dtype == value.dtype
    strides = {name: value.stride() for name, value in optimizers.tensors().items()}
    assert {name: value.stride() for name, value in again.items()} == strides

    for each, its_model in ((optimizers, model), (restored, other)):
        for step in range(3, 5):
            give_gradients(its_model, step)
            each.set_lr(0.003)
            each.step()
    for (name, first), second in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second), name


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_reset_discards_all_momentum(name: str):
    model = network()
    optimizers = make_optimizers(model, Recipe(optimizer=name))
    give_gradients(model, 0)
    optimizers.step()
    assert optimizers.tensors()
    optimizers.reset()
    assert optimizers.tensors() == {}
    give_gradients(model, 1)
    optimizers.step()
    assert optimizers.tensors()


def test_zero_grad_clears_the_gradients():
    model = network()
    optimizers = make_optimizers(model, Recipe(optimizer="muon"))
    give_gradients(model, 0)
    optimizers.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_set_lr_scales_every_group():
    model = network()
    optimizers = make_optimizers(model, Recipe(bias_lr=2.0, last_lr=0.1))
    optimizers.set_lr(0.5)
    first = rates(optimizers, model)
    optimizers.set_lr(0.25)
    assert rates(optimizers, model) == {name: (rate / 2, decay) for name, (rate, decay) in first.items()}


def test_layer_decay_lowers_the_learning_rate_of_early_layers_geometrically() -> None:
    model = create_model("nin_tiny", in_channels=3, norm=None)
    groups = parameter_groups(model, Recipe(layer_decay=0.01, last_lr=3.0, bias_lr=2.0))
    scale = {id(parameter): group["scale"] for group in groups for parameter in group["params"]}
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(layers) == 9
    for index, layer in enumerate(layers):
        expected = 0.01 ** (1 - index / 8) * (3.0 if layer is model.last_layer else 1.0)
        assert scale[id(layer.weight)] == pytest.approx(expected)
        assert scale[id(layer.bias)] == pytest.approx(2 * expected)
    assert len(parameter_groups(model, Recipe())) <= 5
