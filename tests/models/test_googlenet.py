"""GoogLeNet as published: counts, named outputs, auxiliary heads, options."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlpconv.errors import UsageError
from mlpconv.models import build, create_model

OPTIONS = [
    {"norm": "batch", "width": 0.25},
    {"activation": "maxout", "width": 0.25, "aux_heads": True, "size": (83, 97)},
    {"head": "fc", "size": 37, "width": 0.25},
    {"head": "fc+dropout", "size": (37, 41), "width": 0.25},
    {"init": "he", "width": 0.25},
    {"init": "identity", "width": 0.25, "num_classes": 7},
    {"last_relu": True, "width": 0.25},
]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameters_as_published() -> None:
    assert parameters(create_model("googlenet")) == 6_998_552
    model = create_model("googlenet", aux_heads=True)
    assert parameters(model) == model.config.parameters == 13_378_280


def test_it_has_5x5_branches_and_no_batch_norm_as_published() -> None:
    model = create_model("googlenet")
    kernels = [module.kernel_size[0] for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert (kernels.count(5), kernels.count(7), kernels.count(3)) == (9, 1, 10)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert all(pool.ceil_mode for pool in model.modules() if isinstance(pool, nn.MaxPool2d) and pool.stride == 2)
    assert model.category_maps(torch.zeros(1, 3, 224, 224)).shape == (1, 1000, 7, 7)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options: dict) -> None:
    torch.manual_seed(0)
    model = create_model("googlenet", **options)
    assert parameters(model) == model.config.parameters
    assert build(model.config.to_dict()).config == model.config
    x = torch.randn(2, *model.input_size) if "size" in options else torch.randn(2, 3, 37, 41)
    logits = model(x)
    assert logits.shape == (2, model.num_classes)
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_outputs_are_named() -> None:
    plain = create_model("googlenet", width=0.25, num_classes=5).eval()
    x = torch.randn(2, 3, 224, 224)
    outputs = plain.outputs(x)
    assert outputs._fields == ("logits", "aux1", "aux2")
    assert outputs.aux1 is None
    assert outputs.aux2 is None
    assert torch.equal(outputs.logits, plain(x))


def test_auxiliary_heads_follow_modules_4a_and_4d() -> None:
    model = create_model("googlenet", aux_heads=True, width=0.25, num_classes=5, size=97).eval()
    outputs = model.outputs(torch.randn(1, 3, 97, 97))
    assert outputs.aux1.shape == outputs.aux2.shape == (1, 5)
    outputs.aux1.sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert any(name.startswith("inception.4a") for name in reached)
    assert not any(name.startswith(("inception.4b", "aux.4d", "linear")) for name in reached)
    assert isinstance(model(torch.randn(1, 3, 97, 97)), torch.Tensor)


def test_auxiliary_heads_refuse_other_sizes_by_name() -> None:
    model = create_model("googlenet", aux_heads=True, width=0.25)
    assert model(torch.zeros(1, 3, 131, 131)).shape == (1, 1000)
    with pytest.raises(UsageError, match="131x131; 224x224 are accepted"):
        model.outputs(torch.zeros(1, 3, 131, 131))
    with pytest.raises(UsageError, match="at least 79x79"):
        create_model("googlenet", aux_heads=True, size=78)
    assert create_model("googlenet", aux_heads=True, size=79, width=0.25).config.size == (79, 79)


def test_a_relu_on_the_maps_needs_maps() -> None:
    with pytest.raises(UsageError, match="no category maps"):
        create_model("googlenet", head="fc", last_relu=True)


def test_published_initial_weights() -> None:
    torch.manual_seed(1)
    model = create_model("googlenet")
    weight = model.inception["4a"].three[1].convs[0].weight
    assert weight.var().item() == pytest.approx(1 / weight[0].numel(), rel=0.02)
    assert model.first_conv.bias.min().item() == pytest.approx(0.2)
    assert model.linear.bias.abs().max() == 0


def test_only_the_classifier_has_small_initial_weights() -> None:
    torch.manual_seed(2)
    model = create_model("googlenet", init="he", aux_heads=True, width=0.25, size=97)
    hidden, last = (layer for layer in model.aux["4a"] if isinstance(layer, nn.Linear))
    assert hidden.weight.std().item() == pytest.approx((2 / hidden.in_features) ** 0.5, rel=0.05)
    assert last.weight.std().item() == pytest.approx(0.03 * (2 / last.in_features) ** 0.5, rel=0.05)


def test_last_relu_is_on_the_maps_and_their_mean_is_the_logits() -> None:
    torch.manual_seed(3)
    model = create_model("googlenet", last_relu=True, width=0.25, num_classes=7).eval()
    x = torch.randn(2, 3, 131, 97)
    maps = model.category_maps(x)
    assert maps.min() == 0
    torch.testing.assert_close(model(x), maps.mean((2, 3)))
