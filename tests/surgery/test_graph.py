"""Tracing: which values are fixed, which stay expressions, which modules are one node, and that nothing changes."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from support.graphs import randomised, vision
from support.wrapped import Lambda, share
from torch import Tensor, nn

import mlpconv
from mlpconv.errors import SurgeryError, UsageError
from mlpconv.surgery.tracing.accept import is_parametrized, shared_names
from mlpconv.surgery.tracing.graph import calls_of, dtype_of, meta_copy, open_all, replace_module, shape_of, trace
from mlpconv.surgery.tracing.tracer import trace_graph


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# ---- ways to write a forward pass


def shuffled(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def part_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    half = y[:, :2]
    half += 1
    y[:, 3:, 1:] = y[:, 3:, :-1] * 2
    return y


def counted(m: Any, x: Tensor) -> Tensor:
    rows = x.shape[2]
    more = rows
    more += 1
    return F.pad(m.conv(x), (0, 0, 0, more - rows)) * rows


def checked(m: Any, x: Tensor) -> Tensor:
    assert isinstance(x, Tensor)
    assert x.dim() == 4 and x.shape[1] in (2, 4), f"images of {x.shape}"
    if min(x.shape[2:]) < 3 or not x.is_floating_point():
        raise ValueError("too small")
    return x


def positions(m: Any, x: Tensor) -> Tensor:
    rows = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)
    return x + rows[:, None] + torch.zeros((len(x), 1, 1, 1)) + m.table


def helped(m: Any, x: Tensor) -> Tensor:
    return share(m.conv(x))


def picked(m: Any, x: Tensor) -> Tensor:
    features = {"low": x, "high": m.conv(x)}
    best = torch.stack([features[name] for name in features]).max(0)
    return torch.cat([*best.values.chunk(2, 1)], 1).to(x.dtype)


@pytest.mark.parametrize("function", [shuffled, part_in_place, counted, checked, positions, helped, picked])
def test_a_graph_is_equivalent_at_other_sizes(function: Any) -> None:
    model = Lambda(function, conv=nn.Conv2d(4, 4, 3, padding=1)).eval()
    model.table = torch.tensor(0.5)
    graph = trace(model, (4, 8, 6))
    for shape in ((2, 4, 8, 6), (3, 4, 8, 6), (1, 4, 11, 7)):
        with torch.no_grad():
            assert torch.equal(graph(images(*shape)), model(images(*shape)))


def test_nodes_know_their_shapes_and_modules() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 7 * 5, 7))
    model[1] = model[3].half().float() and nn.ReLU()
    graph = trace(model, (3, 9, 7))
    shapes = {str(node.target): shape_of(node) for node in graph.graph.nodes if node.op == "call_module"}
    assert shapes == {"0": (2, 5, 7, 5), "1": (2, 5, 7, 5), "2": (2, 175), "3": (2, 7)}
    assert all(dtype_of(node) is torch.float32 for node in graph.graph.nodes if node.op == "call_module")
    shared = nn.ReLU()
    twice = trace(nn.Sequential(shared, nn.Conv2d(3, 3, 1), shared), (3, 5, 5))
    assert [len(calls) for calls in calls_of(twice.graph, twice).values()] == [2, 1]


def test_unused_parameters_are_kept() -> None:
    model = Lambda(lambda m, x: m.conv(x), conv=nn.Conv2d(3, 5, 3), aux=nn.Linear(4, 2))
    model.register_buffer("calls", torch.zeros(()), persistent=False)
    graph = trace(model, (3, 5, 5))
    assert list(graph.state_dict()) == list(model.state_dict())
    assert graph.get_buffer("calls").shape == ()


class Peek(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.conv(x)


def test_a_module_that_disables_gradients_is_one_node() -> None:
    """A graph cannot represent such a switch, so the module must not be traced into."""
    graph = trace(nn.Sequential(Frozen(), nn.ReLU()), (3, 5, 5))
    assert [str(node.target) for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1"]
    assert not graph(images(1, 3, 5, 5)).requires_grad


def test_each_mode_has_its_graph() -> None:
    model = Lambda(lambda m, x: F.dropout(x, 0.5, m.training) if m.training else x)
    names = [[node.name for node in trace(model, (3, 5, 5), training=mode).graph.nodes] for mode in (True, False, None)]
    assert names[0] == names[2] != names[1]


@pytest.mark.parametrize(
    "name",
    [
        "shufflenet_v2_x0_5",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("googlenet", "densenet121", "swin_t")),
    ],
)
def test_torchvision_networks_as_graphs(name: str) -> None:
    extra = {"init_weights": False} if name == "googlenet" else {}
    model = vision("torchvision.models").get_model(name, weights=None, **extra).eval()
    graph = trace(model, (3, 64, 64))
    assert list(graph.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        assert torch.equal(graph(images(1, 3, 64, 96)), model(images(1, 3, 64, 96)))


@dataclass
class Features:
    maps: Tensor
    pooled: Tensor


class Output(OrderedDict[str, Tensor]):
    """Like Hugging Face's outputs: a dictionary whose entries are also attributes."""

    def __init__(self, maps: Tensor, pooled: Tensor) -> None:
        super().__init__(maps=maps, pooled=pooled)
        self.maps, self.pooled = maps, pooled


class Pair(NamedTuple):
    maps: Tensor
    pooled: Tensor


class Backbone(nn.Module):
    def __init__(self, holder: Any) -> None:
        super().__init__()
        self.conv, self.pool, self.holder = nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), holder

    def forward(self, x: Tensor) -> Any:
        maps = self.conv(x).relu()
        return self.holder(maps=maps, pooled=self.pool(maps))


@pytest.mark.parametrize("holder", [Pair, Features, Output, dict])
@pytest.mark.parametrize("part", ["maps", "pooled"])
def test_a_backbone_with_several_outputs_is_traced(holder: Any, part: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        features = m.backbone(x)
        maps = features[part] if holder is dict else getattr(features, part)
        return m.fc(maps.mean((2, 3)) if part == "maps" else maps.flatten(1))

    model = Lambda(forward, backbone=Backbone(holder), fc=nn.Linear(6, 5)).eval()
    shut = trace(model, (3, 9, 7), opens=lambda name, _: not name)
    assert torch.equal(shut(images(2, 3, 9, 7)), model(images(2, 3, 9, 7)))
    maps = mlpconv.surgery.pool_head(model, (3, 9, 7), latency=False).model.category_maps(images(1, 3, 9, 7))
    assert maps.shape == (1, 5, 7, 5)
    assert torch.allclose(maps.mean((2, 3)), model(images(1, 3, 9, 7)), atol=1e-6)
    slid = mlpconv.surgery.convolutionalize(model, (3, 9, 7), latency=False)
    assert slid.model(images(1, 3, 11, 7)).shape == (1, 5, 3, 1)
    assert slid.report.details["equal"]


@pytest.mark.parametrize(
    "function",
    [lambda m, x: m.conv((x - x.mean()) / x.std()), lambda m, x: m.conv(x / x.max()), lambda m, x: m.conv(x).mean()],
)
def test_scalar_tensors_are_traced(function: Any) -> None:
    model = Lambda(function, conv=nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))).eval()
    assert mlpconv.surgery.fold(model, (3, 9, 7)).report.changed == ("conv.0", "conv.1")


class Reduction(nn.Module):
    """Like einops' layers: looks up what to do by the rank of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean({3: (1,), 4: (2, 3)}[x.ndim])


def test_a_layer_that_dispatches_on_rank_is_part_of_the_head() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), Reduction(), nn.Linear(6, 5)).eval()
    assert mlpconv.surgery.pool_head(model, (3, 9, 7), latency=False).model.category_maps(images(1, 3, 9, 7)).dim() == 4


# ---- the network is unchanged


def test_the_network_is_untouched() -> None:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
            self.fc = nn.Linear(4, 7)
            self.heard: list[object] = []

        def forward(self, x: Tensor) -> Tensor:
            x = self.drop(self.norm(self.conv(x)))
            self.heard.append(x)
            return self.fc(x.mean((2, 3)))

    model = Stateful().train()
    model.norm.eval()
    model.conv.bias.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    objects = {name: id(value) for name, value in model.named_parameters()}
    result = mlpconv.surgery.pool_head(model, (3, 9, 9))
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert {name: id(value) for name, value in model.named_parameters()} == objects
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.conv.bias.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.heard == []
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.is_grad_enabled()
    # The copy has the same modes and the same requires_grad flags.
    assert [result.model.training, result.model.norm.training, result.model.drop.training] == [True, False, True]
    trainable = {name: value.requires_grad for name, value in result.model.named_parameters()}
    assert trainable == {name: value.requires_grad for name, value in model.named_parameters()}


# ---- errors


def refused(model: Any, shape: Any = (3, 9, 9)) -> str:
    with pytest.raises((SurgeryError, UsageError)) as caught:
        trace(model, shape)
    return str(caught.value)


class Hooked(nn.Module):
    """Return an nn.Sequential whose second convolution has a hook."""


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].register_forward_hook(lambda *_: None)
    return model


def patched() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model[0].forward = lambda x: x
    return model


class Partial(nn.Module):
    """Convolve some of the channels, with one of two forward methods chosen by the constructor (FasterNet)."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.forward = getattr(self, way)

    def slicing(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x[:, :2]), x[:, 2:]], 1)

    def splitting(self, x: Tensor) -> Tensor:
        first, second = x.split([2, x.shape[1] - 2], 1)
        return torch.cat([self.conv(first), second * 2], 1)


@pytest.mark.parametrize("way", ["slicing", "splitting"])
def test_a_forward_chosen_among_the_modules_own_methods_is_traced(way: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), Partial(way), nn.Conv2d(5, 4, 1)).eval()
    before = model(images(2, 3, 9, 7))
    graph = trace(model, (3, 9, 7))
    with torch.no_grad():
        model[1].conv.weight.zero_()
        assert torch.equal(graph(images(2, 3, 9, 7)), before)


def strange() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Partial("slicing"))
    model[1].forward = Partial("slicing").slicing
    return model


def borrowed() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model[0].forward = model[0].extra_repr
    return model


def locked() -> nn.Module:
    model = nn.Conv2d(3, 4, 3)
    model.lock = threading.Lock()
    return model


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (hooked, ["1 (Conv2d)", "hooks"]),
        (patched, ["0 (Conv2d)", "forward", "replaced"]),
        (strange, ["1 (Partial)", "forward", "replaced"]),
        (borrowed, ["0 (Conv2d)", "forward", "replaced"]),
        (lambda: Partial("slicing"), ["The network (Partial)", "forward", "replaced"]),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), ["0 (LazyConv2d)", "lazy"]),
        (lambda: torch.jit.script(nn.ReLU()), ["TorchScript"]),
        (lambda: nn.DataParallel(nn.Conv2d(3, 4, 3)), [".module"]),
        (lambda: nn.Conv2d(3, 4, 3, device="meta"), ["meta", "load its weights"]),
        (lambda: "resnet50", ["str", "nn.Module"]),
        (lambda: nn.Conv2d(5, 4, 3), ["3x9x9", "channel"]),
        (Peek, ["Peek", "values in a tensor"]),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Peek()), ["in 1", "values in a tensor"]),
        (lambda: nn.Bilinear(3, 3, 3), ["input2"]),
        (lambda: Lambda(lambda m, x: x.view(-1, 3, *x.shape[1:]).mean(1)), ["batch sizes 3, 6 and not 2"]),
        (lambda: mlpconv.create_model("nin_cifar10", in_channels=1), ["3 channels", "1 are accepted"]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:Lazy modules:UserWarning")
def test_trace_errors_name_the_module_and_the_reason(model: Any, says: list[str]) -> None:
    text = refused(model())
    for part in says:
        assert part in text


class Remembering(nn.Module):
    """Cache a table of weights per device, as attention with biases does (LeViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.biases, self.tables, self.calls = nn.Parameter(torch.randn(5)), {}, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if str(x.device) not in self.tables:
            self.tables[str(x.device)] = self.biases.flip(0)
        return x + self.tables[str(x.device)][:, None, None]


def test_values_cached_during_tracing_are_removed() -> None:
    shadow = meta_copy(nn.Sequential(nn.Conv2d(3, 5, 3), Remembering())).eval()
    before = [dict(vars(module)) for module in shadow.modules()]
    trace_graph(shadow, (3, 9, 7), lambda *_: False)
    assert [dict(vars(module)) for module in shadow.modules()] == before
    assert shadow[1].tables == {}
    again = trace_graph(shadow, (3, 9, 7), open_all)
    assert "1.biases" in [node.target for node in again.find_nodes(op="get_attr")]
    assert again.owning_constants == {}


def test_a_model_that_cannot_be_copied_is_rejected() -> None:
    assert "cannot be copied" in refused(locked())


def test_an_untraceable_part_of_the_head_is_named_with_the_reason() -> None:
    scaled = Lambda(lambda m, x: x.mean((2, 3)) * {7: 2.0}[x.shape[2]], pool=nn.AdaptiveAvgPool2d(1))
    with pytest.raises(SurgeryError, match=r"1 \(Lambda\) is a part of the head, .*: it looks up an image size"):
        mlpconv.surgery.pool_head(nn.Sequential(nn.Conv2d(3, 4, 3), scaled, nn.Linear(4, 5)), (3, 9, 7))


def test_a_network_that_fails_on_one_image_is_rejected() -> None:
    model = Lambda(lambda m, x: m.conv(x).mean((2, 3)).view(-1, 2, 4).mean(1), conv=nn.Conv2d(3, 4, 3))
    with pytest.raises(SurgeryError, match=r"itself fails on a batch of 1 .*: shape '\[-1, 2, 4\]' is invalid"):
        mlpconv.surgery.fold(model, (3, 9, 7))


@pytest.mark.parametrize("shape", [(3, 9), (3, 0, 9), 32, (3, 9, 9.0)])
def test_an_invalid_input_shape_is_rejected(shape: Any) -> None:
    assert "(3, 32, 32)" in refused(nn.Conv2d(3, 4, 3), shape)


# ---- replacing modules, and helpers of these tests


def test_a_shared_module_is_replaced_everywhere() -> None:
    shared, other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    shared.weight.requires_grad_(False)
    other.bias.requires_grad_(False)
    model = nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared)).eval()
    replace_module(model, "1.1", other)
    assert model[0] is model[1][1] is other
    assert not model[0].training
    assert [other.weight.requires_grad, other.bias.requires_grad] == [True, False]
    with pytest.raises(SurgeryError, match="no module '1.7'"):
        replace_module(model, "1.7", nn.ReLU())


def test_shared_and_computed_parameters_are_found() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    model[1].weight = model[0].weight
    assert shared_names(model, model[0]) == ("1.weight",)
    assert shared_names(model, model[2]) == ()
    assert [is_parametrized(module) for module in model] == [False, False, True]


def test_randomised_networks_have_non_trivial_norms() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert model[1].running_mean.abs().min() > 0
    assert model[1].running_var.min() >= 0.5
