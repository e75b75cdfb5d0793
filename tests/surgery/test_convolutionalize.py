"""Tests of convolutionalize: the same logits, and for larger images a map that equals the original on crops."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from support.graphs import CLASSES, FLATTENS, POOLS, Head, Network, Rules, networks, randomised
from support.small_networks import close, images
from torch import Tensor, nn

import mlpconv
from mlpconv.errors import SurgeryError
from mlpconv.surgery import convolutionalize


@settings(max_examples=15)
@given(networks())
def test_the_logits_are_preserved_for_every_graph(network: tuple[nn.Module, tuple[int, int, int]]) -> None:
    model, shape = network
    result = convolutionalize(model, shape, latency=False)
    before, after = copy.deepcopy(model).double().eval(), copy.deepcopy(result.model).double().eval()
    x = images(3, *shape)
    with torch.no_grad():
        assert close(before(x), after(x))
        assert after.category_maps(x).shape == (3, CLASSES, 1, 1)
    assert result.model.training is model.training
    assert not any(isinstance(module, nn.Linear) for module in result.model.modules())


@settings(max_examples=10)
@given(networks(rules=Rules(padded=False, gates=False, strides=False)))
def test_a_larger_image_equals_the_original_on_every_crop(
    network: tuple[nn.Module, tuple[int, int, int]],
) -> None:
    model, (channels, height, width) = network
    result = convolutionalize(model, (channels, height, width), latency=False)
    before, after = copy.deepcopy(model).double().eval(), copy.deepcopy(result.model).double().eval()
    x = images(2, channels, height + 3, width + 2)
    with torch.no_grad():
        dense = after(x)
        assert dense.shape == (2, CLASSES, 4, 3)
        for row in range(4):
            for column in range(3):
                crop = x[:, :, row : row + height, column : column + width]
                assert close(before(crop), dense[:, :, row, column])
    assert result.report.details["equal"]
    assert "each cell equals the original on its crop" in str(result.report)


@pytest.mark.parametrize("spelling", FLATTENS)
def test_every_step_runs_once_for_every_spelling_of_flatten(spelling: str) -> None:
    """Size queries of the removed flattening do not keep old steps alive."""
    trunk = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AvgPool2d(2, 1), nn.BatchNorm2d(6), nn.Dropout(0.3))
    layers = nn.Sequential(nn.Linear(6 * 4 * 2, 11), nn.Dropout(0.4), nn.Linear(11, 7))
    changed = convolutionalize(Network(trunk, Head(spelling, FLATTENS[spelling], layers)), (3, 7, 5)).model.train()
    calls = []
    for name, module in changed.named_modules():
        if isinstance(module, nn.AvgPool2d | nn.BatchNorm2d | nn.Dropout | nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    changed(images(2, 3, 7, 5).float())
    assert len(calls) == 7
    assert len(set(calls)) == 7


@settings(max_examples=12)
@given(networks())
def test_training_is_preserved(network: tuple[nn.Module, tuple[int, int, int]]) -> None:
    """Batch statistics and dropout use the same random numbers in the same order."""
    model, shape = network
    # Dropout directly after flattening draws random numbers in the order of the elements.
    head = model.get_submodule("head")
    assume(head.spelling in POOLS or not isinstance(head.layers[0], nn.Dropout))
    model.train()
    changed = convolutionalize(model, shape, latency=False).model
    before, after = copy.deepcopy(model).double(), copy.deepcopy(changed).double()
    outputs = []
    for each in (before, after):
        torch.manual_seed(5)
        outputs.append(each(images(4, *shape)))
        outputs[-1].square().sum().backward()
    assert close(*outputs, tolerance=1e-7)
    gradients = [dict(each.named_parameters()) for each in (before, after)]
    assert list(gradients[0]) == list(gradients[1])
    for name, parameter in gradients[0].items():
        other = gradients[1][name].grad
        assert parameter.grad is not None
        assert other is not None
        assert float((parameter.grad.norm() - other.norm()).abs()) <= 1e-6 * max(1.0, float(parameter.grad.norm()))


class LeNet(nn.Module):
    """LeNet-5 as usually written, without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.max_pool2d(torch.tanh(self.conv2(x)), 2)
        x = x.view(-1, 16 * 5 * 5)
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


def test_lenet_becomes_the_convolutions_of_its_paper() -> None:
    model = randomised(LeNet())
    result = convolutionalize(model, (1, 32, 32), latency=False)
    kernels = {name: tuple(getattr(result.model, name).weight.shape) for name in ("fc1", "fc2", "fc3")}
    assert kernels == {"fc1": (120, 16, 5, 5), "fc2": (84, 120, 1, 1), "fc3": (10, 84, 1, 1)}
    assert result.report.changed == ("fc1", "fc2", "fc3")
    assert list(result.model.state_dict()) == list(model.state_dict())
    assert result.report.details["step"] == [4, 4]
    assert result.report.after.parameters == result.report.before.parameters
    assert result.report.after.field is not None
    assert [axis.size for axis in result.report.after.field] == [32, 32]
    assert result.model(torch.zeros(2, 1, 40, 36)).shape == (2, 10, 3, 2)
    assert result.model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def vgg(pool: tuple[int, int], *, drop: bool = False) -> nn.Module:
    first: list[nn.Module] = [nn.Dropout(0.5)] if drop else []
    features = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2))
    classifier = nn.Sequential(
        *first, nn.Linear(5 * pool[0] * pool[1], 11), nn.ReLU(True), nn.Dropout(), nn.Linear(11, 7)
    )
    return randomised(nn.Sequential(features, nn.AdaptiveAvgPool2d(pool), nn.Flatten(), classifier))


@pytest.mark.parametrize(
    ("size", "pool", "kernel", "dilation"),
    [
        ((14, 14), (7, 7), (7, 7), (1, 1)),  # one cell each: the pool does nothing
        ((28, 12), (7, 3), (7, 3), (2, 2)),  # windows of 2x2
        ((22, 14), (7, 7), (11, 7), (1, 1)),  # 11 rows to 7: uneven windows
        ((2, 2), (3, 2), (1, 1), (1, 1)),  # fewer cells than windows
    ],
)
def test_adaptive_pools_of_every_ratio(
    size: tuple[int, int], pool: tuple[int, int], kernel: tuple[int, int], dilation: tuple[int, int]
) -> None:
    model = vgg(pool).eval()
    result = convolutionalize(model, (3, *size), latency=False)
    conv = result.model.get_submodule("3.0")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.kernel_size, conv.dilation) == (kernel, dilation)
    x = images(2, 3, *size).float()
    with torch.no_grad():
        assert close(model(x), result.model(x), 1e-5)
        larger = result.model(images(1, 3, size[0] + 4, size[1] + 2).float())
        assert larger.shape == (1, 7, 3, 2)
    assert ("uneven windows" in str(result.report)) == (kernel != pool)


def test_dropout_applies_to_uneven_averages() -> None:
    """Dropout between the pool and the linear layer needs the values of the averages, also in training."""
    model = vgg((3, 3), drop=True)
    changed = convolutionalize(model, (3, 9, 9), latency=False).model
    x = images(2, 3, 9, 9)
    outputs = []
    for each in (model.double().train(), changed.double().train()):
        torch.manual_seed(3)
        outputs.append(each(x))
    assert close(*outputs)
    with torch.no_grad():
        assert close(model.eval()(x), changed.eval()(x))
        assert changed(images(1, 3, 13, 11)).shape == (1, 7, 3, 2)


def test_dense_windows_equal_the_pooled_crop() -> None:
    """Without padding and with 2x2 windows, each cell of the map equals the original on the crop."""
    features = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
    model = randomised(nn.Sequential(features, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(45, 7))).double().eval()
    changed = convolutionalize(model, (3, 8, 8), latency=False).model
    x = images(1, 3, 11, 9)
    with torch.no_grad():
        dense = changed(x)
        crops = [model(x[:, :, i : i + 8, j : j + 8]) for i in range(4) for j in range(2)]
    assert close(torch.stack(crops, 2).reshape(1, 7, 4, 2), dense)


def test_the_report_gives_the_difference_that_padding_causes() -> None:
    model = vgg((7, 7)).eval()
    report = convolutionalize(model, (3, 14, 14), latency=False).report
    x = mlpconv.surgery.proof.compare.random_images(1, (3, 16, 16))
    with torch.no_grad():
        changed = convolutionalize(model, (3, 14, 14), latency=False).model
        dense = changed(x)
        gaps = [
            (model(x[:, :, 2 * i : 2 * i + 14, 2 * j : 2 * j + 14]) - dense[:, :, i, j]).abs().max().item()
            for i in range(2)
            for j in range(2)
        ]
    assert not report.details["equal"]
    assert report.details["absolute"] == pytest.approx(max(gaps), rel=1e-3)
    assert max(gaps) > 0.01
    assert "0.0 pad: at the border of a crop" in str(report)


def test_nearly_constant_logits_are_reported_as_weak_evidence() -> None:
    model = vgg((7, 7)).eval()
    with torch.no_grad():
        model.get_submodule("0.0").weight.mul_(1e-12)
    report = convolutionalize(model, (3, 14, 14), latency=False).report
    assert not report.details["equal"]
    assert any("nearly the same" in note for note in report.notes)


@pytest.mark.parametrize("spelling", [*POOLS, *FLATTENS])
def test_every_spelling_is_supported(spelling: str) -> None:
    pooled = spelling in POOLS
    trunk = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
    layers = nn.Linear(5 if pooled else 5 * 7 * 5, CLASSES)
    head = Head(spelling, (POOLS if pooled else FLATTENS)[spelling], layers)
    model = randomised(Network(trunk, head)).eval()
    changed = convolutionalize(model, (3, 9, 7), latency=False).model
    with torch.no_grad():
        assert close(model(images(2, 3, 9, 7).float()), changed(images(2, 3, 9, 7).float()), 1e-5)
        assert changed(images(1, 3, 12, 8).float()).shape == (1, CLASSES, 4, 2)


def test_layer_norm_and_softmax_apply_at_each_cell() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 5, 3), nn.LayerNorm(5), nn.Linear(5, 7)

        def forward(self, x: Tensor) -> Tensor:
            return F.log_softmax(self.fc(self.norm(self.conv(x).mean((2, 3)))), dim=-1)

    model = randomised(Net()).eval()
    changed = convolutionalize(model, (3, 9, 7), latency=False).model
    dense = changed(images(1, 3, 10, 9).float())
    assert torch.allclose(dense.exp().sum(1), torch.ones(1, 2, 3))
    assert close(model(images(1, 3, 10, 9).float()[:, :, 1:, 2:]), dense[:, :, 1, 2], 1e-5)


def test_a_network_without_a_linear_layer_pools_windows() -> None:
    model = mlpconv.create_model("nin_tiny", in_channels=3, num_classes=7, size=13).eval()
    result = convolutionalize(model, (3, 13, 13), latency=False)
    assert result.model(torch.zeros(1, 3, 13, 13)).shape == (1, 7)
    assert result.model(torch.zeros(1, 3, 21, 17)).shape == (1, 7, 3, 2)


def test_a_network_of_linear_layers_slides_over_the_image_itself() -> None:
    model = randomised(nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 7, 11), nn.Tanh(), nn.Linear(11, 7))).eval()
    result = convolutionalize(model, (3, 5, 7), latency=False)
    assert result.report.details["equal"]
    assert result.model.get_submodule("1").weight.shape == (11, 3, 5, 7)


# ---- unsupported networks


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attend, self.fc = (
            nn.Conv2d(3, 6, 3),
            nn.MultiheadAttention(6, 2, batch_first=True),
            nn.Linear(6, 7),
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return self.fc(self.attend(tokens, tokens, tokens)[0].mean(1))


class Mixing(nn.Module):
    """A network whose linear layer mixes channels of all images of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 5, 3), nn.Linear(245, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc(x.transpose(0, 1).reshape(x.shape[0], -1))


class Tokens(nn.Module):
    """Patches with a class token and a linear layer on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.extra = nn.Conv2d(3, 5, 3, 3), nn.Parameter(torch.randn(1, 1, 5))
        self.mix, self.fc = nn.Linear(5, 5), nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.extra.expand(x.shape[0], -1, -1), x], dim=1)
        return self.fc(self.mix(x)[:, 0])


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Attention(), "attend"),
        (Tokens(), "cat() in the forward works on tokens (N, 10, 5)"),
        (Mixing(), "mixes the images"),
        (nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Softmax(1), nn.Linear(5 * 49, 7)), "2 (Softmax)"),
        (
            nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.BatchNorm1d(5 * 49), nn.Linear(5 * 49, 7)),
            "2 (BatchNorm1d)",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(45, 7)),
            "1 (AdaptiveMaxPool2d)",
        ),
        (nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.LayerNorm(5 * 49), nn.Linear(5 * 49, 7)), "2 (LayerNorm)"),
        (nn.Conv2d(3, 5, 3), "logits (N, K)"),
    ],
)
def test_unsupported_heads_are_refused_with_the_step(model: nn.Module, says: str) -> None:
    with pytest.raises(SurgeryError) as caught:
        convolutionalize(model, (3, 9, 9), latency=False)
    assert says in str(caught.value)


def test_a_global_pool_of_a_single_cell_slides_on_larger_images() -> None:
    layers = [nn.Conv2d(3, 5, 9), nn.ReLU(), nn.Conv2d(5, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3)]
    model = nn.Sequential(*layers, nn.Linear(5, 7)).eval()
    result = convolutionalize(model, (3, 9, 9), latency=False)
    image = torch.randn(1, 3, 12, 11)
    with torch.no_grad():
        maps = result.model(image)
        expected = model(image[:, :, 2:11, 1:10])
    assert maps.shape == (1, 7, 4, 3)
    torch.testing.assert_close(maps[:, :, 2, 1], expected, rtol=1e-4, atol=1e-5)
