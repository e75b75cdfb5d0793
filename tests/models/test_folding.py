"""Folding batch norm into the convolutions keeps the logits."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mlpconv
from mlpconv.errors import UsageError
from mlpconv.layers import make_pool
from mlpconv.models import Network, build, create_model
from mlpconv.models.blocks import Block, NINConfig
from mlpconv.models.folding import fold_norm, norm_scale_and_shift
from mlpconv.models.nin import NIN


def shaken(model: Network, seed: int = 1, *, negative: bool = False) -> Network:
    """Return the network with random biases, norm weights and statistics, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.bias, std=0.3, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                for tensor, low, high in (
                    (module.weight, -1.5 if negative else 0.1, 1.5),
                    (module.bias, -1.0, 1.0),
                    (module.running_mean, -2.0, 2.0),
                    (module.running_var, 0.05, 3.0),
                ):
                    tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def difference(one: nn.Module, other: nn.Module, size: tuple[int, ...]) -> float:
    """Return the difference of float64 logits relative to the largest."""
    images = torch.randn(3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        a, b = (copy.deepcopy(model).double().eval()(images) for model in (one, other))
    assert a.std() > 0
    return float((a - b).abs().max() / a.abs().max())


TRAINED = {"norm": "batch", "pool_first": True, "last_relu": False, "init": "identity", "width": 0.1}
CASES = [
    ("nin_cifar10", TRAINED),
    ("nin_cifar10", {"norm": "batch", "width": 0.1}),
    ("nin_cifar10", {"norm": "batch", "width": 0.1, "activation": "maxout", "pool_first": True}),
    ("nin_cifar10", {"norm": "batch", "width": 0.1, "activation": "elu", "pool_first": True, "dropout": 0.0}),
    ("nin_mnist", {"norm": "batch", "head": "fc+dropout", "size": (23, 29)}),
    ("conv_svhn", {"norm": "batch", "width": 0.1, "pool2": "avg"}),
    ("nin_tiny", {}),
    ("nin_tiny", {"pool_first": True}),
    ("googlenet", {"norm": "batch", "width": 0.1, "size": 96}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_the_plain_network_has_the_same_logits(name: str, options: dict) -> None:
    torch.manual_seed(0)
    model = shaken(create_model(name, **options))
    folded = fold_norm(model)
    assert folded.config.norm is None
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert sum(p.numel() for p in folded.parameters()) == folded.config.parameters
    # float32 holds the folded weights to 24 bits
    assert difference(model, folded, model.input_size) < 1e-5


def test_a_folded_network_has_the_layers_of_the_paper() -> None:
    model = shaken(create_model("nin_cifar10", **{**TRAINED, "width": 1.0}))
    folded = fold_norm(model)
    assert sum(p.numel() for p in folded.parameters()) == 966_986
    plain = create_model("nin_cifar10", norm=None, last_relu=False)
    plain.load_state_dict(folded.state_dict())
    assert difference(model, plain, (3, 32, 32)) < 1e-5


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_small_network_folds_exactly(data: st.DataObject) -> None:
    pick = data.draw
    blocks = tuple(
        Block(
            kernel := pick(st.sampled_from((1, 2, 3, 5))),
            tuple(pick(st.lists(st.integers(1, 7), min_size=1, max_size=3))),
            stride=pick(st.integers(1, 2)),
            padding=pick(st.integers(0, kernel - 1)),
            pool=pick(st.sampled_from(("max", "avg", "none"))),
        )
        for _ in range(pick(st.integers(1, 3)))
    )
    first = pick(st.booleans())
    config = NINConfig(
        "small",
        blocks,
        in_channels=pick(st.integers(1, 3)),
        size=(41, 37),
        activation=pick(st.sampled_from(("relu", "leaky_relu", "elu", "gelu", "maxout", "identity"))),
        norm="batch",
        last_relu=pick(st.booleans()),
        pool_first=first,
    )
    torch.manual_seed(pick(st.integers(0, 99)))
    model = shaken(NIN(config), negative=not first).double()
    images = torch.randn(2, *model.input_size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fold_norm(model)(images), model(images), rtol=1e-9, atol=1e-9)


def test_the_original_is_unchanged_and_the_settings_are_kept() -> None:
    model = shaken(create_model("nin_tiny")).to(memory_format=torch.channels_last).double()
    model.blocks[1].convs[0].weight.requires_grad_(False)
    model.blocks[2].train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold_norm(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.config.norm == "batch"
    assert folded.blocks[0].convs[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert folded.blocks[0].convs[0].weight.dtype == torch.float64
    assert [p.requires_grad for p in folded.blocks[1].convs[0].parameters()] == [False, True]
    assert (folded.blocks[2].norms[0].training, folded.blocks[1].norms[0].training) == (True, False)
    assert folded.blocks[2].training
    assert not folded.training


def test_random_numbers_are_left_alone() -> None:
    model = shaken(create_model("nin_tiny"))
    torch.manual_seed(3)
    fold_norm(model)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


def test_a_negative_weight_after_a_max_pool_is_refused_by_name() -> None:
    model = shaken(create_model("nin_tiny", pool_first=True))
    with torch.no_grad():
        model.blocks[1].norms[2].weight[5] = -0.5
    with pytest.raises(UsageError, match=r"blocks\.1\.norms\.2 .* 1 of 48 channels \(5\)"):
        fold_norm(model)
    with torch.no_grad():
        model.blocks[1].norms[2].weight[5] = 0.0  # a constant channel is no maximum at all
        model.blocks[1].norms[1].weight[5] = -0.5  # no pool between
    assert difference(model, fold_norm(model), model.input_size) < 1e-5


def test_a_network_without_norms_is_copied() -> None:
    model = create_model("nin_cifar10", width=0.1)
    folded = fold_norm(model)
    assert folded is not model
    assert difference(model, folded, model.input_size) == 0


def test_the_auxiliary_heads_are_folded_too() -> None:
    model = shaken(create_model("googlenet", norm="batch", width=0.1, aux_heads=True, num_classes=7, size=96)).double()
    folded = fold_norm(model)
    images = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded.outputs(images), model.outputs(images), rtol=1e-9, atol=1e-9)
    assert not any(isinstance(module, nn.BatchNorm2d | nn.LocalResponseNorm) for module in folded.modules())
    built = build(json.loads(json.dumps(folded.config.to_dict()))).double()
    built.load_state_dict(folded.state_dict())
    assert difference(built, folded, (3, 96, 96)) == 0


def test_norms_that_cannot_be_folded_are_refused() -> None:
    model = shaken(create_model("nin_tiny"))
    model.blocks[0].norms[1].running_mean[3] = float("nan")
    with pytest.raises(UsageError, match=r"blocks\.0\.norms\.1 has NaN"):
        fold_norm(model)
    model.blocks[0].norms[1] = nn.BatchNorm2d(32, track_running_stats=False)
    with pytest.raises(UsageError, match=r"blocks\.0\.norms\.1 keeps no running statistics"):
        fold_norm(model)
    model = shaken(create_model("nin_tiny"))
    model.blocks[0].convs[0].weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(UsageError, match="not numbers"):
        fold_norm(model)


def test_scale_and_shift_compute_the_norm() -> None:
    for affine in (True, False):
        norm = nn.BatchNorm2d(7, eps=0.03, affine=affine).double().eval()
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.1, 2)
        if affine:
            nn.init.uniform_(norm.weight, -2, 2)
            nn.init.uniform_(norm.bias, -2, 2)
        scale, shift = norm_scale_and_shift(norm, "norm")
        x = torch.randn(2, 7, 3, 5, dtype=torch.float64)
        torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], norm(x))


def test_a_model_file_holds_the_folded_network(tmp_path: object) -> None:
    model = shaken(create_model("nin_tiny"))
    path = f"{tmp_path}/folded.safetensors"
    steps = mlpconv.Preprocessing(["standardize"], channels=1, size=(8, 8))
    pixels = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    steps.fit(pixels)
    mlpconv.save(path, fold_norm(model), steps, classes=list("abcdefghij"), input_size=(1, 8, 8), info={})
    loaded = mlpconv.load(path)
    assert loaded.model.config.norm is None
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits(pixels), model(steps(pixels)), rtol=1e-4, atol=1e-4)


def test_folding_across_a_max_pool_is_exact() -> None:
    """The norm after the max-pool moves before it."""
    model = create_model("nin_tiny", pool_first=True)
    assert model.blocks[0].pool_at == "conv"
    assert isinstance(make_pool("max"), type(model.blocks[0].pool))
    assert build(fold_norm(model).config.to_dict()).blocks[0].pool_at == "conv"
