"""The linear-convolution baselines: the same networks without their hidden 1x1s."""

from __future__ import annotations

import pytest
from torch import nn

from mlpconv.models import create_model, list_models
from mlpconv.models.linear import linear_baseline
from mlpconv.models.nin import NETWORKS


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_each_block_keeps_its_first_convolution(name: str) -> None:
    mlp, linear = create_model(name), create_model(name.replace("nin_", "conv_"))
    assert linear.config.family == "conv"
    wide = [conv for conv in mlp._convs() if conv.kernel_size != (1, 1)]
    assert [(conv.kernel_size, conv.out_channels, conv.stride, conv.padding) for conv in linear._convs()[:-1]] == [
        (conv.kernel_size, conv.out_channels, conv.stride, conv.padding) for conv in wide
    ]
    assert linear.last_conv.kernel_size == (1, 1)
    assert linear.last_conv.out_channels == mlp.num_classes
    assert [type(block.pool) for block in linear.blocks] == [type(block.pool) for block in mlp.blocks]
    assert [type(drop) for drop in linear.dropouts] == [type(drop) for drop in mlp.dropouts]


def test_every_network_has_its_baseline() -> None:
    assert {linear_baseline(config).name for config in NETWORKS.values()} <= set(list_models())
    assert linear_baseline(NETWORKS["nin_cifar100"]).blocks[0].stds == (0.001,)
    assert linear_baseline(NETWORKS["nin_imagenet"]).blocks[-1].stds == (0.05, 0.01)


def test_baselines_take_the_same_options() -> None:
    model = create_model("conv_cifar10", num_classes=7, width=0.5, norm="batch", head="fc+dropout", pool2="avg")
    assert [conv.out_channels for conv in model._convs()] == [96, 96, 96, 7]
    assert isinstance(model.blocks[1].pool, nn.AvgPool2d)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 3
