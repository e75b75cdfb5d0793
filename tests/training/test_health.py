"""The collapse at ln(classes): dead networks are detected, healthy ones are not, and repair restores learning."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlpconv.data.sampler import Batch
from mlpconv.errors import CollapseError, TrainingError
from mlpconv.models import create_model
from mlpconv.models.base import Network
from mlpconv.training import Recipe, health
from mlpconv.training.health import CollapseWatch, chance_loss, collapse_error, is_constant, repair
from mlpconv.training.optim import make_optimizers
from mlpconv.training.step import train_step

K = 5


def network(seed: int = 0, **options: Any) -> Network:
    torch.manual_seed(seed)
    settings = {
        "num_classes": K,
        "in_channels": 3,
        "norm": None,
        "last_relu": True,
        "init": "he",
        "pool_first": False,
        "width": 0.5,
    }
    return create_model("nin_tiny", **(settings | options)).to(memory_format=torch.channels_last)


def pictures(n: int = 29, size: int = 11, seed: int = 1) -> Batch:
    """Return images of K classes that differ in the colour of a stripe: easy to learn."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % K
    images = 0.3 * torch.randn(n, 3, size, size, generator=draw)
    for i, label in enumerate(labels.tolist()):
        images[i, label % 3, :, 2 * label : 2 * label + 2] += 2.0
    return Batch(images.contiguous(memory_format=torch.channels_last), labels)


@torch.no_grad()
def kill_last_maps(model: Network) -> None:
    model.last_layer.bias.fill_(-100.0)


@torch.no_grad()
def kill_hidden(model: Network, block: int = 1) -> None:
    """Make the first convolution of a block negative everywhere; the next layers have biases."""
    model.blocks[block].convs[0].bias.fill_(-100.0)
    for conv in [module for module in model.modules() if isinstance(module, nn.Conv2d)]:
        if float(conv.bias.max()) > -100:
            conv.bias.fill_(0.1)


def loss_of(model: Network, data: Batch) -> float:
    with torch.no_grad():
        return F.cross_entropy(model(data.images), data.labels).item()


EVEN = torch.arange(K).repeat(3)  # as many labels of each class


# --- chance-level loss


def test_the_chance_level_loss_is_the_entropy_of_the_classes():
    assert chance_loss(torch.arange(10).repeat(7)) == pytest.approx(math.log(10))
    skewed = torch.tensor([0] * 30 + [1] * 10)
    assert chance_loss(skewed) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert chance_loss(torch.zeros(7, dtype=torch.long)) == 0.0


# --- detection


@pytest.mark.parametrize("steps_per_epoch", [1, 20, 390])
@pytest.mark.parametrize("kill", [kill_last_maps, kill_hidden])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_dead_network_is_detected_within_the_patience(kill: Any, dropout: float, steps_per_epoch: int):
    model, data = network(dropout=dropout).train(), pictures()
    kill(model)
    watch = CollapseWatch(EVEN, steps_per_epoch)
    assert watch.patience <= max(2, steps_per_epoch / 2)
    alarms = [watch.collapsed(loss_of(model, data), 1, model, data.images) for _ in range(watch.patience)]
    assert alarms == [False] * (watch.patience - 1) + [True]
    assert model.training


def test_dropout_does_not_hide_a_dead_hidden_layer():
    model, data = network(dropout=0.5).train(), pictures()
    kill_hidden(model)
    with torch.no_grad():
        logits = model(data.images)
    assert (logits.amax(0) - logits.amin(0)).max() > 1e-3  # all of it noise of the dropout after the dead layer
    assert is_constant(model, data.images)


def test_steps_between_checks_count():
    model, data = network(), pictures()
    kill_last_maps(model)
    watch = CollapseWatch(EVEN, 390)
    assert watch.patience == 50
    assert not watch.collapsed(math.log(K), 49, model, data.images)
    assert watch.collapsed(math.log(K), 50, model, data.images)


@pytest.mark.parametrize("init", ["paper", "he", "identity"])
@pytest.mark.parametrize("name", ["nin_cifar10", "nin_cifar100", "nin_tiny"])
def test_a_healthy_untrained_network_has_not_collapsed(name: str, init: str):
    torch.manual_seed(0)
    model = create_model(name, num_classes=K, in_channels=3, width=0.2, last_relu=True, init=init, norm=None).train()
    data = pictures()
    loss = loss_of(model, data)
    assert abs(loss - math.log(K)) < 0.5
    watch = CollapseWatch(EVEN, 2)
    assert not any(watch.collapsed(math.log(K), 1, model, data.images) for _ in range(20))


def test_logits_that_only_bf16_makes_equal_are_no_collapse():
    model, data = network().eval(), pictures()
    with torch.no_grad():
        model.last_layer.weight.mul_(1e-4)
        model.last_layer.bias.fill_(1.0)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(data.images)
    assert (logits.amax(0) == logits.amin(0)).all()
    assert not is_constant(model, data.images)


def test_a_loss_below_chance_resets_the_count():
    model, data = network(), pictures()
    kill_last_maps(model)
    watch = CollapseWatch(EVEN, 10)
    guess, better = math.log(K), math.log(K) - 0.2
    alarms = [watch.collapsed(loss, 1, model, data.images) for loss in [guess] * 4 + [better] + [guess] * 5]
    assert alarms == [False] * 9 + [True]


def test_the_network_is_tested_once_per_patience(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(health, "is_constant", lambda *_: calls.append(1))
    watch = CollapseWatch(EVEN, 20)
    for _ in range(100):
        watch.collapsed(math.log(K), 1, network(), torch.empty(0))
    assert len(calls) == 10


def test_the_count_can_be_resumed():
    model, data = network(), pictures()
    kill_last_maps(model)
    first = CollapseWatch(EVEN, 10)
    for _ in range(4):
        first.collapsed(math.log(K), 1, model, data.images)
    assert CollapseWatch(EVEN, 10, first.count).collapsed(math.log(K), 1, model, data.images)


@pytest.mark.parametrize("images", [torch.ones(7, 3, 11, 11), torch.randn(1, 3, 11, 11)])
def test_identical_images_are_no_evidence_of_a_collapse(images: torch.Tensor):
    assert not is_constant(network(), images)


def test_the_check_changes_no_state():
    model, data = network(norm="batch", dropout=0.5).train(), pictures()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    draws = torch.get_rng_state()
    is_constant(model, data.images)
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_error_explains_the_collapse_and_names_remedies():
    error = collapse_error(2.3026, 10, 77)
    assert isinstance(error, CollapseError)
    assert isinstance(error, TrainingError)
    for words in ("step 77", "2.3026", "ln(10 classes)", "on_collapse='repair'", "last_relu=False", "norm='batch'"):
        assert words in str(error)


def test_chance_level_loss_and_accuracy_mean_that_nothing_was_learned():
    watch = CollapseWatch(EVEN, 10)
    guess = math.log(K)
    assert watch.nothing_learned(guess + 0.02, 0.2)
    assert watch.nothing_learned(guess - 0.005, 0.25)
    assert not watch.nothing_learned(guess - 0.02, 0.2)
    assert not watch.nothing_learned(guess + 0.02, 0.5)
    skewed = CollapseWatch(torch.tensor([0] * 95 + [1] * 5), 10)  # and smoothing, which keeps the loss up
    assert skewed.nothing_learned(0.3, 0.95)
    assert not skewed.nothing_learned(0.3, 0.99)


# --- repair


def kill_everything(model: Network) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(-1.0)


def flatten_hidden(model: Network) -> None:
    """Make a layer constant but not zero."""
    with torch.no_grad():
        conv = model.blocks[1].convs[1]
        conv.weight.zero_()
        conv.bias.fill_(0.7)


DEATHS = [kill_last_maps, kill_hidden, kill_everything, flatten_hidden]


@pytest.mark.parametrize("kill", DEATHS)
def test_repair_brings_gradients_back_to_every_layer(kill: Any):
    model, data = network().train(), pictures()
    kill(model)
    assert is_constant(model, data.images)
    assert repair(model, data.images, seed=0, step=7) >= K
    assert not is_constant(model, data.images)
    loss = F.cross_entropy(model(data.images), data.labels)
    assert loss.item() == pytest.approx(math.log(K), abs=0.25)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all()
        assert parameter.grad.abs().max() > 0, name
    assert model.training


@pytest.mark.parametrize("kill", DEATHS)
def test_training_learns_after_the_repair_and_not_without(kill: Any):
    data, recipe = pictures(), Recipe(momentum=0.9, nesterov=True, weight_decay=0.0)
    losses = {}
    for repaired, steps in ((False, 5), (True, 60)):
        model = network()
        kill(model)
        if repaired:
            repair(model, data.images, seed=0, step=7)
        optimizers = make_optimizers(model, recipe)
        optimizers.set_lr(0.02)
        outcomes = [train_step(model.train(), optimizers, data, recipe, step, "fp32") for step in range(steps)]
        losses[repaired] = float(outcomes[-1].loss)
    assert losses[False] > math.log(K) - 0.05
    assert losses[True] < math.log(K) - 0.2


def test_repair_is_a_function_of_the_seed_and_the_step():
    def repaired(seed: int, step: int) -> torch.Tensor:
        model = network()
        kill_hidden(model)
        torch.manual_seed(torch.seed())
        repair(model, pictures().images, seed, step)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(repaired(0, 7), repaired(0, 7))
    assert not torch.equal(repaired(0, 7), repaired(1, 7))
    assert not torch.equal(repaired(0, 7), repaired(0, 8))


def test_repair_keeps_live_channels():
    model, data = network(), pictures()
    first = model.first_conv.weight.detach().clone()
    with torch.no_grad():
        model.first_conv.bias[:3] = -100.0
    kill_last_maps(model)
    repair(model, data.images, 0, 0)
    same = (model.first_conv.weight == first).flatten(1).all(1)
    assert same.tolist() == [False] * 3 + [True] * (len(first) - 3)


OTHERS = [{"norm": "batch"}, {"activation": "maxout"}, {"head": "fc", "size": (11, 11)}, {"dropout": 0.5}]


@pytest.mark.parametrize("options", OTHERS)
def test_repair_supports_all_network_options(options: dict[str, Any]):
    model, data = network(**options).train(), pictures()
    with torch.no_grad():
        model.last_layer.weight.zero_()
        model.last_layer.bias.fill_(-1.0)
    assert is_constant(model, data.images)
    repair(model, data.images, 0, 0)
    assert not is_constant(model, data.images)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_repair_skips_unused_layers():
    torch.manual_seed(0)
    model = create_model("googlenet", num_classes=K, width=0.07, aux_heads=True, size=96).train()
    data = pictures(5, 96)
    with torch.no_grad():
        model.linear.weight.zero_()
    asleep = [parameter.detach().clone() for parameter in model.aux.parameters()]
    assert is_constant(model, data.images)
    repair(model, data.images, 0, 0)
    assert not is_constant(model, data.images)
    assert all(torch.equal(now, then) for now, then in zip(model.aux.parameters(), asleep, strict=True))


def test_repair_handles_a_linear_layer_on_maps():
    torch.manual_seed(0)
    model = create_model("googlenet", num_classes=K, width=0.07, last_relu=True, size=96, dropout=0.0).train()
    data = pictures(5, 96)
    with torch.no_grad():
        model.linear.bias.fill_(-100.0)
    assert is_constant(model, data.images)
    repair(model, data.images, 0, 0)
    assert not is_constant(model, data.images)
    maps = model.category_maps(data.images)
    assert maps.mean().item() == pytest.approx(1.0, abs=0.1)
    assert F.cross_entropy(model(data.images), data.labels).item() == pytest.approx(math.log(K), abs=0.25)
