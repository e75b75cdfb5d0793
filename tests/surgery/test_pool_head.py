"""Tests of pool_head: the same logits in eval and training mode, and exact class activation maps (CAM)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from support.graphs import CLASSES, POOLS, Head, Network, networks, randomised, vision
from support.small_networks import close, images
from torch import Tensor, nn

import mlpconv
from mlpconv.errors import SurgeryError
from mlpconv.surgery import fold, pool_head


@settings(max_examples=15)
@given(networks(heads=("pool",), hidden=False))
def test_the_mean_of_the_maps_is_the_logits_for_every_graph(
    network: tuple[nn.Module, tuple[int, int, int]],
) -> None:
    model, (channels, height, width) = network
    result = pool_head(model, (channels, height, width), latency=False)
    before, after = copy.deepcopy(model).double().eval(), copy.deepcopy(result.model).double().eval()
    for rows, columns in ((height, width), (height + 7, width + 4)):
        x = images(3, channels, rows, columns)
        with torch.no_grad():
            logits, maps = before(x), after.category_maps(x)
            assert close(logits, after(x))
            assert close(logits, maps.mean((2, 3)))
            assert maps.shape[2:] == before.trunk(x).shape[2:]
    assert result.report.after.macs >= result.report.before.macs
    assert not any(isinstance(module, nn.Linear) for module in result.model.modules())


@settings(max_examples=10)
@given(networks(heads=("pool",), hidden=False))
def test_training_draws_the_same_numbers_and_gives_the_same_gradients(
    network: tuple[nn.Module, tuple[int, int, int]],
) -> None:
    model, shape = network
    model.train()
    changed = pool_head(model, shape, latency=False).model
    before, after = copy.deepcopy(model).double(), copy.deepcopy(changed).double()
    outputs = []
    for each in (before, after):
        torch.manual_seed(5)
        outputs.append(each(images(4, *shape)))
        outputs[-1].square().sum().backward()
    assert close(*outputs, tolerance=1e-7)
    gradients = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        mine, other = parameter.grad, gradients[name].grad
        assert mine is not None
        assert other is not None
        assert close(mine.flatten(), other.flatten(), 1e-6)


@pytest.mark.parametrize("spelling", sorted(POOLS))
def test_every_spelling_is_supported(spelling: str) -> None:
    head = Head(spelling, POOLS[spelling], nn.Sequential(nn.Dropout(0.4), nn.Linear(5, CLASSES)))
    model = randomised(Network(nn.Conv2d(3, 5, 3), head)).eval()
    result = pool_head(model, (3, 9, 7), latency=False)
    x = images(2, 3, 9, 7).float()
    with torch.no_grad():
        assert close(model(x), result.model(x), 1e-5)
        assert close(model(x), result.model.category_maps(x).mean((2, 3)), 1e-5)
        assert result.model.category_maps(x).shape == (2, CLASSES, 7, 5)
    assert isinstance(result.model.get_submodule("head.layers.1"), nn.Conv2d)
    assert isinstance(result.model.get_submodule("head.layers.0"), nn.Dropout2d)


def test_several_linear_steps_and_two_heads_move_before_the_pool() -> None:
    class Net(nn.Module):
        """Two averaged linear layers on two pools, as in distilled networks."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.wide = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 11, 1)
            self.one, self.two = nn.Linear(11, 7), nn.Linear(11, 7, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            pooled = self.wide(F.adaptive_avg_pool2d(self.conv(x), 1)).flatten(1)
            return (self.one(pooled) + self.two(pooled)) / 2 + 0.25

    model = randomised(Net()).eval()
    result = pool_head(model, (3, 9, 7), latency=False)
    x = images(2, 3, 10, 8).float()
    with torch.no_grad():
        assert close(model(x), result.model(x), 1e-5)
        assert close(model(x), result.model.category_maps(x).mean((2, 3)), 1e-5)


def test_steps_after_the_logits_stay_after_the_pool() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 5, 3), nn.Linear(5, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).mean((2, 3))).softmax(-1)

    model = randomised(Net()).eval()
    result = pool_head(model, (3, 9, 7), latency=False)
    x = images(2, 3, 9, 7).float()
    with torch.no_grad():
        assert close(model(x), result.model(x), 1e-6)
        assert close(model(x), result.model.category_maps(x).mean((2, 3)).softmax(-1), 1e-6)
    assert any("softmax" in note for note in result.report.notes)


def test_built_in_networks() -> None:
    model = mlpconv.create_model("googlenet", num_classes=7, in_channels=3, size=64, width=0.125).eval()
    result = pool_head(randomised(model, 2), (3, 64, 64), latency=False)
    x = images(1, 3, 64, 64).float()
    with torch.no_grad():
        assert close(model(x), result.model.category_maps(x).mean((2, 3)), 1e-5)
        assert close(model.category_maps(x), result.model.category_maps(x), 1e-5)
    nin = mlpconv.create_model("nin_tiny")
    assert "already are averages of maps" in str(pool_head(nin, (1, 8, 8), latency=False).report)


class Auxiliary(nn.Module):
    """Like GoogLeNet: an auxiliary head in training mode, and named outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3)
        self.aux, self.fc = nn.Sequential(nn.Flatten(), nn.Linear(5 * 49, 7)), nn.Linear(6, 7)

    def forward(self, x: Tensor) -> object:
        x = self.first(x)
        aux = self.aux(x) if self.training else None
        x = F.adaptive_avg_pool2d(F.relu(self.second(x)), 1).flatten(1)
        x = self.fc(F.dropout(x, 0.3, training=self.training))
        return {"logits": x, "aux": aux} if self.training else x


def test_an_auxiliary_head_is_kept_and_used_in_training() -> None:
    model = randomised(Auxiliary()).eval()
    changed = pool_head(model, (3, 9, 9), latency=False).model
    assert list(changed.state_dict()) == list(model.state_dict())
    x = images(2, 3, 9, 9).float()
    assert close(model(x), changed(x), 1e-5)
    model.train()
    changed.train()
    torch.manual_seed(3)
    before = model(x)
    torch.manual_seed(3)
    after = changed(x)
    assert set(after) == {"logits", "aux"}
    assert close(before["logits"], after["logits"], 1e-5)
    assert torch.equal(before["aux"], after["aux"])


@pytest.mark.parametrize("spelling", ["mean of two", "mean of mean", "mean of flat", "channels last"])
def test_a_windowed_pool_before_the_global_one_is_no_part_of_the_head(spelling: str) -> None:
    trunk = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AvgPool2d(2, 1))
    model = randomised(Network(trunk, Head(spelling, POOLS[spelling], nn.Linear(5, CLASSES)))).eval()
    maps = pool_head(model, (3, 9, 9), latency=False).model.category_maps(torch.ones(1, 3, 9, 9))
    assert maps.shape == (1, CLASSES, 6, 6)


# ---- unsupported networks


def after_pool(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (after_pool(nn.Linear(5, 11), nn.ReLU(), nn.Linear(11, 7)), ["4 (ReLU)", "5 (Linear)", "not linear"]),
        (after_pool(nn.LayerNorm(5), nn.Linear(5, 7)), ["3 (LayerNorm)", "not linear"]),
        (after_pool(nn.BatchNorm1d(5), nn.Linear(5, 7)), ["3 (BatchNorm1d)", "in training"]),
        (
            nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(5, 7)),
            ["1 (AdaptiveMaxPool2d)", "maximum"],
        ),
        (
            nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(45, 7)),
            ["1 (AdaptiveAvgPool2d)", "7x7 cells to 3x3", "convolutionalize"],
        ),
        (nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(245, 7)), ["2 (Linear)", "7x7", "convolutionalize"]),
        (nn.Conv2d(3, 5, 3), ["logits (N, K)"]),
    ],
)
def test_heads_that_are_not_linear_are_refused_with_the_step(model: nn.Module, says: list[str]) -> None:
    with pytest.raises(SurgeryError) as caught:
        pool_head(model, (3, 9, 9), latency=False)
    for text in says:
        assert text in str(caught.value)


def test_a_norm_of_pooled_features_can_be_folded_first() -> None:
    model = randomised(after_pool(nn.BatchNorm1d(5), nn.Linear(5, 7))).eval()
    with pytest.raises(SurgeryError, match="fold the network first"):
        pool_head(model, (3, 9, 9), latency=False)
    changed = pool_head(fold(model, (3, 9, 9)).model, (3, 9, 9), latency=False).model.double()
    x = images(2, 3, 9, 9)
    with torch.no_grad():
        assert close(model.double()(x), changed.category_maps(x).mean((2, 3)), 1e-5)


# ---- torchvision and timm


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "shufflenet_v2_x0_5",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("googlenet", "mobilenet_v2", "regnet_y_400mf")),
    ],
)
def test_torchvision(name: str) -> None:
    extra = {"init_weights": False} if name == "googlenet" else {}
    model = vision("torchvision.models").get_model(name, weights=None, **extra)
    model = randomised(model).eval()
    changed = pool_head(model, (3, 33, 33), latency=False).model
    x = images(2, 3, 33, 33).float()
    with torch.no_grad():
        assert close(model(x), changed.category_maps(x).mean((2, 3)), 1e-3)
    assert list(changed.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize(("name", "reason"), [("mobilenet_v3_small", "Hardswish"), ("convnext_tiny", "layer_norm")])
def test_torchvision_heads_that_are_not_linear(name: str, reason: str) -> None:
    model = vision("torchvision.models").get_model(name, weights=None)
    with pytest.raises(SurgeryError, match=reason):
        pool_head(model, (3, 64, 64), latency=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_b0", "swin_tiny_patch4_window7_224"])
def test_timm(name: str) -> None:
    timm, size = vision("timm"), 224 if "swin" in name else 64
    model = timm.create_model(name, num_classes=CLASSES).eval()
    changed = pool_head(model, (3, size, size), latency=False).model
    x = images(1, 3, size, size).float()
    with torch.no_grad():
        assert close(model(x), changed.category_maps(x).mean((2, 3)), 1e-4)
