"""Inserting a 1x1 does not change the outputs, its parameters train, and inexact insertions are refused."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_networks import assert_same, count, outputs, shaken
from torch import fx, nn
from torch.nn import functional as F

from mlpconv.errors import SurgeryError, UsageError
from mlpconv.layers import Maxout
from mlpconv.models import build, create_model
from mlpconv.surgery import deepen
from mlpconv.surgery.tracing.graph import trace
from mlpconv.surgery.tracing.ranges import range_of

IMAGE = (3, 13, 11)


def net(activation: nn.Module, channels: int = 7) -> nn.Sequential:
    """Return a network with seeded weights; "1" is the activation."""
    torch.manual_seed(2)
    return shaken(
        nn.Sequential(
            nn.Conv2d(3, 2 * channels if isinstance(activation, Maxout) else channels, 3),
            activation,
            nn.Conv2d(channels, 5, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
    )


def inserted(model: nn.Module) -> list[str]:
    """Return the class names of the layers of the first insertion."""
    return [type(part).__name__ for part in next(m for n, m in model.named_modules() if n.endswith("deepened"))]


AFTER = {
    "relu": (nn.ReLU(), ["Conv2d", "ReLU"]),
    "relu in place": (nn.ReLU(inplace=True), ["Conv2d", "ReLU"]),
    "relu6": (nn.ReLU6(), ["Conv2d", "ReLU"]),
    "sigmoid": (nn.Sigmoid(), ["Conv2d", "ReLU"]),
    "softplus": (nn.Softplus(), ["Conv2d", "ReLU"]),
    "maxout": (Maxout(), ["Conv2d", "Maxout"]),
    "gelu": (nn.GELU(), ["Conv2d"]),
    "leaky": (nn.LeakyReLU(0.2), ["Conv2d"]),
    "prelu": (nn.PReLU(), ["Conv2d"]),
    "tanh": (nn.Tanh(), ["Conv2d"]),
}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("activation", "parts"), AFTER.values(), ids=AFTER.keys())
def test_the_outputs_do_not_change_after_any_activation(activation: nn.Module, parts: list[str], norm: bool) -> None:
    model = net(activation).double()
    result = deepen(model, "1", input_shape=IMAGE, norm=norm)
    assert inserted(result.model) == [parts[0], *["BatchNorm2d"] * norm, *parts[1:]]
    assert_same(model, result.model, IMAGE)
    assert result.report.exact
    assert ("the 1x1 there is linear" in str(result.report)) is (len(parts) == 1)


def test_inserted_parameters_receive_gradients_and_the_others_keep_their_names() -> None:
    model = net(nn.ReLU())
    changed = deepen(model, "1", input_shape=IMAGE, norm=True).model.train()
    changed(torch.randn(4, *IMAGE)).square().sum().backward()
    new = {name: p for name, p in changed.named_parameters() if "deepened" in name}
    assert set(new) == {f"1.deepened.{part}.{kind}" for part in ("conv", "norm") for kind in ("weight", "bias")}
    assert all(p.requires_grad and p.grad is not None and p.grad.abs().sum() > 0 for p in new.values())
    assert {name for name, _ in model.named_parameters()} == {n for n, _ in changed.named_parameters()} - set(new)


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "elu", "gelu", "silu"])
def test_an_activation_that_would_change_something_is_refused(activation: str) -> None:
    with pytest.raises(SurgeryError, match=f"The values of 1 are between -inf and inf .* {activation} changes some"):
        deepen(net(nn.GELU()), "1", input_shape=IMAGE, activation=activation)
    if activation in ("gelu", "silu"):
        with pytest.raises(SurgeryError, match="between 0 and inf"):
            deepen(net(nn.ReLU()), "1", input_shape=IMAGE, activation=activation)
    else:
        model = net(nn.ReLU6()).double()
        assert_same(model, deepen(model, "1", input_shape=IMAGE, activation=activation).model, IMAGE)
    with pytest.raises(SurgeryError, match="relu6 changes some"):
        deepen(net(nn.ReLU()), "1", input_shape=IMAGE, activation="relu6")


@pytest.mark.parametrize("activation", ["prelu", "maxout", "identity"])
def test_prelu_maxout_and_identity_change_nothing_anywhere(activation: str) -> None:
    model = net(nn.GELU()).double()
    assert_same(model, deepen(model, "0", input_shape=IMAGE, activation=activation).model, IMAGE)


def test_random_initialisation_is_reported_as_not_exact() -> None:
    model = net(nn.GELU())
    report = deepen(model, "1", "he", input_shape=IMAGE, activation="gelu").report
    assert not report.exact
    assert max(each.relative for each in report.differences) > 0.01
    noisy = deepen(model, "1", input_shape=IMAGE, noise=0.1, activation="maxout", seed=3)
    assert not noisy.report.exact
    weight = noisy.model[1].deepened.conv.weight[:, :, 0, 0]
    expected = torch.eye(7).repeat_interleave(2, 0)
    assert (weight - expected).std().item() == pytest.approx(0.1 * math.sqrt(2 / 7), rel=0.3)
    again = deepen(model, "1", input_shape=IMAGE, noise=0.1, activation="maxout", seed=3)
    assert torch.equal(weight, again.model[1].deepened.conv.weight[:, :, 0, 0])


def test_a_norm_with_statistics_of_images_is_nearly_the_identity_in_training() -> None:
    model = net(nn.ReLU())
    images = torch.randn(64, *IMAGE, generator=torch.Generator().manual_seed(5))
    blind, seeing = (deepen(model, "1", input_shape=IMAGE, norm=True, images=given).model for given in (None, images))
    with torch.no_grad():
        wanted = model(images)
        gaps = [(copy.deepcopy(m).train()(images) - wanted).abs().max() for m in (blind, seeing)]
    assert gaps[1] < 0.01 * gaps[0]


class Block(nn.Module):
    """A residual block that uses one ReLU twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(x + self.conv2(self.relu(self.conv1(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(Block(), Block())
        self.unused, self.head = nn.ReLU(), nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.head(self.layers(x).mean((2, 3))))


@pytest.mark.parametrize("where", ["layers", "layers.0", "layers.1", "head"])
def test_blocks_keep_their_class_and_every_name(where: str) -> None:
    model = Net().double().eval()
    model.layers[0].conv1.eval()
    result = deepen(model, where, input_shape=IMAGE)
    assert_same(model, result.model, IMAGE)
    assert set(model.state_dict()) < set(result.model.state_dict())
    assert all("deepened" in name for name in set(result.model.state_dict()) - set(model.state_dict()))
    assert isinstance(result.model.layers[0], Block)
    assert inserted(result.model) == (["Linear"] if where == "head" else ["Conv2d", "ReLU"])
    again = pickle.loads(pickle.dumps(copy.deepcopy(result.model)))
    assert_same(result.model, again, IMAGE, 0.0)


def test_several_modules_at_once_and_the_same_module_again() -> None:
    model = Net().double().eval()
    once = deepen(model, ["layers", "layers.0"], input_shape=IMAGE).model
    twice = deepen(once, ["layers", "layers.0.deepened"], input_shape=IMAGE).model
    assert count(twice, nn.Conv2d) == count(model, nn.Conv2d) + 4
    assert_same(model, twice, IMAGE)
    with pytest.raises(SurgeryError, match="deepened already: name its child"):
        deepen(once, "layers.0", input_shape=IMAGE)


def test_modes_and_dtypes_are_kept_and_the_original_is_unchanged() -> None:
    model = Net().to(memory_format=torch.channels_last, dtype=torch.bfloat16).train()
    model.layers[0].conv1.eval().requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    changed = deepen(model, "layers.0", input_shape=IMAGE).model
    assert {p.dtype for p in changed.parameters()} == {torch.bfloat16}
    assert (changed.layers[0].conv1.training, changed.layers[0].conv2.training) == (False, True)
    assert changed.layers[0].deepened.training
    assert changed.layers[0].deepened.conv.weight.requires_grad
    assert not changed.layers[0].conv1.weight.requires_grad
    assert type(model.layers[0]) is Block
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Written(nn.Module):
    """Writes into the output of "act", which the gradient of ReLU6 allows and that of an inserted ReLU would not."""

    def __init__(self, write: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.act, self.silu, self.write = nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.SiLU(inplace=True), write

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.conv(x))
        return (self.silu(y) if self.write is None else self.write(y)).mean((2, 3))


def added(y: torch.Tensor) -> torch.Tensor:
    y += 1
    return y


@pytest.mark.parametrize("write", [
    None, added, lambda y: y.mul_(2), torch.sigmoid_, lambda y: F.elu(y, inplace=True), lambda y: F.relu6(y, True),
], ids=["module", "sum", "method", "function", "keyword", "argument"])  # fmt: skip
def test_gradients_are_right_if_the_network_writes_into_the_output(
    write: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    torch.manual_seed(1)
    model = Written(write).double()
    changed = deepen(model, "act", input_shape=IMAGE).model
    assert inserted(changed) == ["Conv2d", "Threshold"]
    gradients = []
    for each in (model, changed):
        each.train()(3 * outputs(nn.Identity(), IMAGE)).square().sum().backward()
        gradients.append(each.conv.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("where", "reason"), [
    ("layers.0.relu", "more than once"),
    ("unused", "by nothing that can be traced"),
])  # fmt: skip
def test_a_module_that_is_not_called_once_is_refused(where: str, reason: str) -> None:
    with pytest.raises(SurgeryError, match=f"{where} .ReLU. is called {reason}"):
        deepen(Net(), where, input_shape=IMAGE)


class Both(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x + 1


class Pair(nn.Module):
    """A network with a module that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.both = Both()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = self.both(x)
        return one + other


def test_a_module_that_returns_a_tuple_is_refused() -> None:
    with pytest.raises(SurgeryError, match="returns no single tensor"):
        deepen(Pair(), "both", input_shape=IMAGE)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"where": "layer"}, "no module 'layer'; did you mean 'layers'"),
    ({"where": []}, "one or more names"),
    ({"where": ["head", "head"]}, "names of different modules"),
    ({"init": "ones"}, "no init 'ones'"),
    ({"activation": "rely"}, "did you mean 'relu'"),
    ({"noise": 1.5}, "noise is 1.5"),
])  # fmt: skip
def test_invalid_settings_are_refused_by_name(wrong: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        deepen(Net(), **{"where": "head", "input_shape": IMAGE} | wrong)


class Steps(nn.Module):
    """Steps with known ranges."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = F.relu6(x), x.sigmoid()
        c = torch.cat([a, torch.tanh(x)], 1)
        return (
            (a + b) * b + c.clamp(min=-0.5).amax() + F.avg_pool2d(a + 1, 3, padding=1, stride=1) + torch.maximum(a, x)
        )


def test_ranges_follow_from_arithmetic() -> None:
    graph = trace(Steps(), IMAGE)
    found = {node.name: range_of(node, graph) for node in graph.graph.nodes}
    assert found["cat"] == (-1.0, 6.0)
    assert found["clamp"] == (-0.5, math.inf)
    assert found["add"] == (0.0, 7.0)
    assert found["mul"] == (0.0, math.inf)
    assert found["maximum"] == (0.0, math.inf)
    assert found["x"] == (-math.inf, math.inf)
    assert found["avg_pool2d"] == (-math.inf, math.inf)  # of a sum with a number, which is not followed


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_values_of_random_steps_are_within_their_range(data: st.DataObject) -> None:
    """No value is outside its inferred range."""
    kinds = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Hardtanh, nn.Softplus, nn.ELU, nn.PReLU,
             lambda: nn.AvgPool2d(3, 1, 1), lambda: nn.MaxPool2d(2, 1), lambda: nn.Conv2d(3, 3, 1))  # fmt: skip
    torch.manual_seed(data.draw(st.integers(0, 9)))
    model = nn.Sequential(*(make() for make in data.draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=5))))
    graph = trace(model, IMAGE, training=False)
    low, high = range_of(list(graph.graph.nodes)[-2], graph)
    made = outputs(model, IMAGE) if any(True for _ in model.parameters()) else model.eval()(5 * torch.randn(3, *IMAGE))
    assert low <= made.min()
    assert made.max() <= high


def test_ranges_of_deep_networks_do_not_recurse() -> None:
    graph = fx.Graph()
    node = graph.call_function(torch.relu, (graph.placeholder("x"),))
    for _ in range(3000):
        node = graph.call_function(torch.flatten, (node, 1))
    graph.output(node)
    assert range_of(node, nn.Module()) == (0.0, math.inf)


@pytest.mark.parametrize("options", [
    {},
    {"norm": "batch", "pool_first": True},
    {"norm": "batch", "pool2": "avg"},
    {"activation": "maxout", "pool_first": True, "norm": "batch"},
    {"activation": "identity", "norm": None},
], ids=str)  # fmt: skip
def test_a_block_of_a_nin_gets_another_of_its_own_1x1s(options: dict) -> None:
    torch.manual_seed(4)
    model = shaken(create_model("nin_tiny", width=0.2, last_relu=True, **options)).double()
    for block in ("blocks.0", "blocks.1", "blocks.2"):
        result = deepen(model, block)
        assert_same(model, result.model, model.input_size)
        rebuilt = build(result.model.config.to_dict()).double()
        rebuilt.load_state_dict(result.model.state_dict())
        assert_same(model, rebuilt, model.input_size)
        assert sum(p.numel() for p in rebuilt.parameters()) == rebuilt.config.parameters
        assert len(rebuilt.config.blocks[int(block[-1])].channels) == 4


def test_blocks_of_a_nin_that_cannot_be_deepened_are_refused() -> None:
    model = shaken(create_model("nin_tiny", pool_first=True))
    with pytest.raises(SurgeryError, match="blocks.2 ends in the category maps"):
        deepen(model, "blocks.2")
    with pytest.raises(SurgeryError, match="leave both out"):
        deepen(model, "blocks.1", activation="prelu")
    with torch.no_grad():
        model.blocks[1].norms[2].weight[0] = -1
    with pytest.raises(SurgeryError, match=r"blocks.1.norms.2 has negative weights"):
        deepen(model, "blocks.1")
    with pytest.raises(SurgeryError, match="gelu is not the identity"):
        deepen(create_model("nin_tiny", activation="gelu"), "blocks.0")
    assert not deepen(create_model("nin_tiny", activation="gelu"), "blocks.0", "he").report.exact
