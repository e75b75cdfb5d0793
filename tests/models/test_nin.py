"""The networks of the paper: parameters, map sizes, cost, position of dropout, initial weights, and every option."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from mlpconv.errors import UsageError
from mlpconv.models import create_model
from mlpconv.models.nin import NETWORKS

COUNTS = {"cifar10": 966_986, "cifar100": 984_356, "svhn": 1_986_026, "mnist": 349_674, "imagenet": 7_595_176}
MULTIPLY_ADDS = {"cifar10": 222.49e6, "cifar100": 223.59e6, "svhn": 274.24e6, "mnist": 50.70e6, "imagenet": 1.10e9}
MAPS = {"cifar10": 8, "cifar100": 8, "svhn": 8, "mnist": 7, "imagenet": 6}
OPTIONS = [
    {"norm": "batch"},
    {"activation": "maxout"},
    {"activation": "maxout", "last_relu": False, "norm": "batch"},
    {"head": "fc"},
    {"head": "fc+dropout"},
    {"width": 0.3},
    {"in_channels": 5},
    {"num_classes": 7},
    {"pool2": "avg"},
    {"pool_first": True, "norm": "batch"},
    {"size": (29, 37), "head": "fc"},
]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_parameters_maps_and_cost_are_those_of_the_paper(name: str) -> None:
    model = create_model(f"nin_{name}").eval()
    assert parameters(model) == COUNTS[name]
    assert all(module.bias is not None for module in model.modules() if isinstance(module, nn.Conv2d))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        maps = model.category_maps(torch.randn(1, *model.input_size))
    assert maps.shape == (1, model.num_classes, MAPS[name], MAPS[name])
    assert counter.get_total_flops() / 2 == pytest.approx(MULTIPLY_ADDS[name], rel=1e-2 if name == "imagenet" else 5e-5)


@pytest.mark.parametrize("name", ["nin_cifar10", "nin_mnist", "conv_cifar10", "nin_tiny"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_configuration_counts_the_parameters(name: str, options: dict) -> None:
    model = create_model(name, **options)
    assert parameters(model) == model.config.parameters
    assert model(torch.randn(2, *model.input_size)).shape == (2, model.num_classes)


def test_relu_follows_the_last_convolution_by_default() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    assert create_model("nin_cifar10").category_maps(x).min() == 0
    assert create_model("nin_cifar10", last_relu=False).category_maps(x).min() < 0


def test_dropout_comes_after_the_pools_of_all_blocks_but_the_last() -> None:
    def places(name: str, **options: object) -> list[float]:
        return [getattr(module, "p", 0.0) for module in create_model(name, **options).dropouts]

    assert places("nin_cifar10") == [0.5, 0.5, 0]
    assert places("nin_imagenet") == [0, 0, 0.5, 0]
    assert places("nin_mnist", dropout=0.2) == [0.2, 0.2, 0]
    assert places("nin_mnist", dropout=0) == [0, 0, 0]
    assert isinstance(create_model("nin_mnist").dropouts[0], nn.Dropout)  # single values, not whole channels
    assert create_model("nin_mnist", head="fc+dropout").head[1].p == 0.5


def test_batch_norm_after_every_convolution_but_the_last_which_folds_away() -> None:
    model = create_model("nin_cifar10", norm="batch")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm.num_features for norm in norms] == [192, 160, 96, 192, 192, 192, 192, 192]
    assert parameters(model) - 2 * sum(norm.num_features for norm in norms) == COUNTS["cifar10"]


def test_width_multiplies_hidden_channels_only() -> None:
    narrow = create_model("nin_cifar10", width=0.5, num_classes=7)
    assert [conv.out_channels for conv in narrow._convs()] == [96, 80, 48, 96, 96, 96, 96, 96, 7]
    assert create_model("nin_cifar10", width=0.01).first_conv.out_channels == 8
    assert create_model("nin_cifar10", width=0.07).first_conv.out_channels == 16  # 13.4: to the nearest multiple of 8


STDS = {
    "nin_cifar10": [0.05] * 9,
    "nin_cifar100": [0.001, 0.01, 0.01] + [0.05] * 6,
    "nin_imagenet": [0.01, 0.05, 0.05, 0.05, 0.05, 0.05, 0.01, 0.05, 0.05, 0.05, 0.05, 0.01],
}


@pytest.mark.parametrize("name", sorted(STDS))
def test_the_papers_initial_weights(name: str) -> None:
    torch.manual_seed(1)
    for conv, std in zip(create_model(name)._convs(), STDS[name], strict=True):
        assert conv.weight.std().item() == pytest.approx(std, rel=0.08)
        assert conv.bias.abs().max() == 0


def test_a_fully_connected_head_has_the_initial_weights_of_the_paper() -> None:
    torch.manual_seed(8)
    assert create_model("nin_cifar100", head="fc").last_layer.weight.std().item() == pytest.approx(0.05, rel=0.02)
    small = create_model("nin_cifar100", head="fc", init="he").last_layer
    assert small.weight.std().item() == pytest.approx(0.03 * math.sqrt(2 / small.in_features), rel=0.02)
    assert small.bias.abs().max() == 0


def test_identity_initialisation_keeps_the_channels() -> None:
    torch.manual_seed(2)
    convs = create_model("nin_cifar10", init="identity")._convs()
    for conv in convs[1:3] + convs[4:6] + convs[7:8]:
        count = min(conv.in_channels, conv.out_channels)
        identity = torch.eye(conv.out_channels, conv.in_channels)
        noise = conv.weight[:, :, 0, 0] - identity
        assert noise.std().item() == pytest.approx(0.3 * math.sqrt(2 / conv.in_channels), rel=0.05)
        assert noise.diagonal().mean().abs() < 5 * noise.std() / math.sqrt(count)
    for conv in (convs[0], convs[3]):
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / conv.weight[0].numel()), rel=0.05)
    assert convs[-1].weight.std() < 0.04 * math.sqrt(2 / 192)


def test_identity_initial_weights_with_maxout_use_the_first_piece() -> None:
    torch.manual_seed(3)
    model = create_model("nin_mnist", init="identity", activation="maxout")
    weight = model._convs()[1].weight[:, :, 0, 0]
    assert weight[0::2].diagonal().mean() > 0.9
    assert weight[1::2].diagonal().mean().abs() < 0.1


@pytest.mark.parametrize("init", ["he", "identity"])
@pytest.mark.parametrize("name", ["nin_cifar10", "nin_cifar100", "nin_mnist", "nin_photo", "conv_svhn"])
def test_the_first_loss_is_near_ln_classes(name: str, init: str) -> None:
    torch.manual_seed(4)
    model = create_model(name, init=init)
    loss = cross_entropy(model(torch.randn(16, *model.input_size)), torch.arange(16) % model.num_classes)
    assert loss.item() == pytest.approx(math.log(model.num_classes), rel=0.06)


def test_manual_seed_makes_the_weights_reproducible() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in create_model("nin_tiny").parameters()])

    assert torch.equal(weights(5), weights(5))
    assert not torch.equal(weights(5), weights(6))


@pytest.mark.parametrize("name", ["nin_tiny", "nin_photo"])
def test_small_networks_cannot_collapse(name: str) -> None:
    config = NETWORKS[name]
    assert (config.norm, config.last_relu) == ("batch", False)
    if name == "nin_tiny":
        assert 20_000 <= config.parameters <= 60_000
        assert config.min_size <= 8
        return
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        create_model(name)(torch.randn(2, 3, 64, 64))
    assert counter.get_total_flops() / 4 < 80e6
    assert 300_000 <= config.parameters <= 600_000


def test_fully_connected_heads_accept_one_size_and_have_no_maps() -> None:
    model = create_model("nin_cifar10", head="fc", size=(29, 31))
    assert model.last_conv is None
    assert model.last_layer.in_features == 10 * 7 * 7
    with pytest.raises(UsageError, match="accepts 29x31 only"):
        model(torch.zeros(1, 3, 31, 29))
    with pytest.raises(UsageError, match="only head='gap'"):
        model.category_maps(torch.zeros(1, 3, 29, 31))


def test_images_of_a_batch_are_independent() -> None:
    torch.manual_seed(7)
    model = create_model("nin_mnist").eval()
    x = torch.randn(3, 1, 13, 17)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))
    assert model(x[:0]).shape == (0, 10)
