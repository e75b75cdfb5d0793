"""The rearranged network computes what the plain one does, and steps aside where it might not."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mlpconv
from mlpconv.errors import ModelFileError, UsageError
from mlpconv.inference import Classifier, dispatch, engine
from mlpconv.inference.dispatch import Dispatcher, modules_of, state_of
from mlpconv.inference.engine import Engine, graph_of, supported
from mlpconv.inference.layer_chain import Affine, LayerChain, chain_of, survey
from mlpconv.models import create_model
from mlpconv.models.squeezenet import Fire
from mlpconv.preprocessing import Preprocessing

pytestmark = pytest.mark.skipif(not supported(), reason="this build of torch has no oneDNN")

BOTH = {torch.float32: 1e-5, torch.bfloat16: 0.03}
BF16 = pytest.mark.skipif(
    not (supported() and torch.ops.mkldnn._is_mkldnn_bf16_supported()), reason="no bfloat16 on this CPU"
)


def draw(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(name: str = "nin_cifar10", negative: bool = True, **options: Any) -> nn.Module:
    """A network in eval mode whose norms have been somewhere, some of them with weights below zero."""
    torch.manual_seed(7)
    model = create_model(
        name, **(({"init": "he"} if "squeeze" not in name and "lite" not in name else {}) | options)
    ).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
            nn.init.uniform_(module.weight, -1.5 if negative else 0.2, 1.5)
            nn.init.normal_(module.bias, 0.2, 0.3)
    return model


def chain(model: nn.Module, size: tuple[int, int] = (32, 32), **options: Any) -> LayerChain:
    found = chain_of(model, size, **options)
    assert found is not None
    return found


KINDS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "paper": ("nin_cifar10", {}, (32, 32)),
    "other size": ("nin_cifar10", {"width": 0.25}, (29, 37)),
    "norm": ("nin_cifar10", {"norm": "batch", "width": 0.25}, (19, 23)),
    "norm after pool, folded": (
        "nin_cifar10", {"norm": "batch", "pool_first": True, "width": 0.25, "negative": False}, (19, 23)
    ),
    "norm after pool, some negative": ("nin_cifar10", {"norm": "batch", "pool_first": True, "width": 0.25}, (19, 23)),
    "second pool averages": ("nin_cifar10", {"pool2": "avg", "width": 0.25}, (17, 31)),
    "no last ReLU": ("nin_cifar10", {"last_relu": False, "width": 0.25}, (16, 17)),
    "fully connected head": ("nin_cifar10", {"head": "fc+dropout", "width": 0.25}, (32, 32)),
    "no activation": ("nin_cifar10", {"activation": "identity", "width": 0.25}, (13, 16)),
    "grey": ("nin_mnist", {"width": 0.25}, (28, 27)),
    "stride and valid convolutions": ("nin_imagenet", {"width": 0.1, "num_classes": 5}, (97, 103)),
    "linear convolutions": ("conv_cifar10", {"width": 0.25}, (32, 32)),
    "fire modules": ("squeezenet", {"width": 0.25, "num_classes": 7}, (37, 53)),
    "fire modules, no last ReLU": ("squeezenet", {"width": 0.25, "num_classes": 7, "last_relu": False}, (53, 37)),
    "depthwise convolutions": ("efficientnet_lite0", {"width": 0.5, "num_classes": 7, "norm": None}, (41, 59)),
    "depthwise convolutions, norm": ("efficientnet_lite0", {"width": 0.5, "num_classes": 7}, (59, 64)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_an_engine_computes_what_the_network_does(
    kind: tuple[str, dict[str, Any], tuple[int, int]], dtype: torch.dtype
) -> None:
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bfloat16 on this CPU")
    name, options, size = kind
    model = network(name, **options)
    x = draw(3, model.in_channels, *size)
    with torch.inference_mode():
        expected, found = model(x), Engine(chain(model, size), dtype)(x)
    assert float(expected.std()) > 1e-3  # it says different things of different images and classes
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max()) <= max(
        BOTH[dtype], 0.05 * (dtype == torch.bfloat16 and "lite" in name)
    ) * float(expected.abs().max())


def test_the_kinds_above_take_every_way_through_a_layer() -> None:
    modules = {
        type(module)
        for name, options, size in KINDS.values()
        for module in chain(network(name, **options), size).layers
    }
    assert {Affine, nn.Conv2d, nn.ReLU, nn.ReLU6, nn.MaxPool2d, nn.AvgPool2d, Fire, nn.ZeroPad2d} <= modules
    assert nn.BatchNorm2d not in modules


@pytest.mark.parametrize("name", ["squeezenet", "efficientnet_lite0"])
def test_the_chain_of_the_features_gives_their_means(name: str) -> None:
    model, x = network(name, width=0.25, num_classes=7), draw(2, 3, 61, 43)
    with torch.inference_mode():
        found = Engine(chain(model, (61, 43), features=True), torch.float32)(x)
        torch.testing.assert_close(found, model.forward_features(x).mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "largest"),
    [
        ("nin_imagenet", (227, 227), 8 * 55 * 55),
        ("squeezenet", (67, 61), 64 * 33 * 30),
        ("efficientnet_lite0", (64, 96), 96 * 32 * 48),
    ],
)
def test_the_work_is_that_of_the_profile(name: str, size: tuple[int, int], largest: int) -> None:
    model = network(name, num_classes=5, width=0.1 if name == "nin_imagenet" else 1)
    found = chain(model, size)
    head = 5 * 1280 if name == "efficientnet_lite0" else 0  # its linear layer is no part of the chain
    assert found.macs == mlpconv.analysis.profile(model, (3, *size)).totals.macs - head
    assert found.largest == largest


def test_no_value_of_any_image_exceeds_the_bound() -> None:
    model = network("efficientnet_lite0", width=0.25, num_classes=7)
    layers, seen = chain(model, (32, 32)).layers, []
    x = draw(5, 3, 32, 32).sign() * 3
    _, _, bound = survey(layers, torch.full((1, 3, 32, 32), 3.0))
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, output: seen.append(float(output.abs().max())))
    layers(x)
    assert 1 < max(seen) <= bound < 1000 * max(seen)


@pytest.mark.parametrize(
    ("count", "room", "parts"),
    [(11, 1e9, [8, 1, 1, 1]), (75, 1e9, [32, 32, 8, 1, 1, 1]), (17, 8, [8, 8, 1]), (3, 0.5, [1, 1, 1])],
)
def test_many_images_go_through_some_at_a_time(
    monkeypatch: pytest.MonkeyPatch, count: int, room: float, parts: list[int]
) -> None:
    model = network(width=0.1)
    made = Engine(chain(model, (16, 16)), torch.float32)
    x, seen, graph = draw(count, 3, 16, 16), [], made.graph
    monkeypatch.setattr(engine, "WORKING_SET", room * 4 * made.chain.largest)
    monkeypatch.setattr(made, "graph", lambda part: seen.append(len(part)) or graph(part))
    with torch.inference_mode():
        torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-5)
    assert seen == parts


def test_a_graph_is_oneDNN_s_and_stays_so_where_the_setting_is_as_before() -> None:
    made = Engine(replace(chain(network("nin_mnist", width=0.5), (28, 28)), head=nn.Identity()), torch.float32)
    x = draw(8, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = made(x)
        assert not torch.jit.onednn_fusion_enabled()
        assert made.graph(x) is made.graphs[8] is not made.network
        made(x)
        assert "oneDNNFusionGroup" in str(torch.jit.last_executed_optimized_graph())
        torch.testing.assert_close(found, made.network(x), rtol=1e-4, atol=1e-5)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            torch.testing.assert_close(made(x), found, rtol=1e-4, atol=1e-5)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("fault", ["fails", "is wrong", "has another signature"])
def test_a_graph_that_cannot_be_trusted_is_not_used(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def compiled(name: str, graph: Any) -> Any:
        if fault == "fails":
            raise RuntimeError("could not create a primitive")
        if fault == "has another signature":
            raise TypeError("incompatible function arguments")
        return lambda x: plain(x) * 1.01

    plain = nn.Conv2d(3, 5, 3).requires_grad_(False).eval()
    x = draw(1, 3, 7, 11)
    assert graph_of(plain, x) is not plain
    monkeypatch.setattr(torch._C, "_create_function_from_graph", compiled)
    assert graph_of(plain, x) is plain
    assert not torch.jit.onednn_fusion_enabled()


@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_weights_are_freed_with_their_engine(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bfloat16 on this CPU")
    model = network("nin_mnist", width=0.5)
    made = Engine(chain(model, (28, 28)), dtype)
    with torch.inference_mode():
        made(draw(9, 1, 28, 28))
    graphs = [graph for graph in made.graphs.values() if graph is not made.network]
    assert len(graphs) == 2
    weights = [weight.untyped_storage()._weak_ref() for weight in made.network.parameters()]
    assert not any(torch.UntypedStorage._expired(weight) for weight in weights)
    del made, graphs
    gc.collect()
    try:
        assert all(torch.UntypedStorage._expired(weight) for weight in weights)
    finally:
        for weight in weights:
            torch.UntypedStorage._free_weak_ref(weight)


def test_old_engines_go_before_there_are_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    made = classifier()
    made.predict(raw(2))
    assert made._dispatcher is not None
    before, alive = weakref.ref(made._dispatcher), []
    prepare = Dispatcher.prepare.__func__

    def watched(cls: type, *given: Any) -> Dispatcher:
        gc.collect()
        alive.append(before() is not None)
        return prepare(cls, *given)

    monkeypatch.setattr(Dispatcher, "prepare", classmethod(watched))
    with torch.no_grad():
        made.model.blocks[2].convs[2].bias += 1
    made.predict(raw(2))
    assert alive == [False]


@pytest.mark.parametrize("options", [{"groups": 2}, {"dilation": 2, "padding": 4}, {"bias": False}])
def test_convolutions_with_any_numbers_have_one(options: dict[str, Any]) -> None:
    model = network()
    model.blocks[1].convs[0] = nn.Conv2d(96, 192, 5, **({"padding": 2} | options))
    with torch.inference_mode():
        x = draw(2, 3, 32, 32)
        torch.testing.assert_close(Engine(chain(model), torch.float32)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"padding_mode": "reflect"}, {"padding": "same"}])
def test_other_convolutions_have_no_engine(options: dict[str, Any]) -> None:
    model = network()
    model.blocks[1].convs[0] = nn.Conv2d(96, 192, 5, **({"padding": 2} | options))
    assert chain_of(model, (32, 32)) is None
    made, pixels = classifier(model), raw(2)
    np.testing.assert_allclose(made.predict(pixels).probabilities, plain(made, pixels), rtol=1e-4, atol=1e-7)


class Other(nn.Conv2d):
    """A convolution that need not compute one."""


def with_a_foreign_part() -> nn.Module:
    model = network()
    model.blocks[1].convs[1] = Other(192, 192, 1)
    return model


def with_a_foreign_part_of_a_fire_module() -> nn.Module:
    model = network("squeezenet", width=0.25, num_classes=7)
    model.features[3].expand3x3 = Other(16, 16, 3, padding=1)
    return model


def with_a_foreign_block() -> nn.Module:
    model = network("efficientnet_lite0", width=0.25, num_classes=7)
    model.blocks[2][1] = nn.Sequential(model.blocks[2][1])
    return model


def with_huge_weights() -> nn.Module:
    model = network()
    with torch.no_grad():
        model.blocks[1].convs[0].weight.fill_(1e38)
    return model


def with_a_missing_number() -> nn.Module:
    model = network()
    with torch.no_grad():
        model.blocks[0].convs[1].weight[3, 5] = float("nan")
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: network(activation="elu"),
        lambda: network(activation="maxout"),
        lambda: network().double(),
        lambda: create_model("googlenet", num_classes=5),
        with_a_foreign_part,
        with_a_foreign_part_of_a_fire_module,
        with_a_foreign_block,
        with_huge_weights,
        with_a_missing_number,
    ],
)
def test_other_networks_and_hopeless_ones_have_no_engine(make: Any) -> None:
    assert chain_of(make(), (32, 32)) is None


def classifier(model: nn.Module | None = None) -> Classifier:
    chain = Preprocessing.create(["standardize"], 3, (32, 32)).fit(raw(9, seed=1))
    return Classifier(model or network(), chain, [f"class {k}" for k in range(10)], (3, 32, 32))


def raw(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def plain(made: Classifier, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return made.model(made.preprocessing(torch.from_numpy(pixels))).softmax(1).numpy()


def pretend(monkeypatch: pytest.MonkeyPatch, fp32: float, bf16: float) -> None:
    """Let the formats take so many seconds."""
    monkeypatch.setattr(dispatch, "timed", lambda engines, x: [fp32, bf16])


@BF16
def test_bfloat16_is_chosen_where_it_is_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, chosen in (((2.0, 1.0), torch.bfloat16), ((1.2, 1.0), torch.float32), ((1.0, 2.0), torch.float32)):
        pretend(monkeypatch, *seconds)
        made = classifier()
        made.predict(raw(2))
        assert made._dispatcher is not None and made._dispatcher.auto is not None
        assert made._dispatcher.auto.dtype == chosen


@BF16
def test_predictions_in_both_formats_are_those_of_the_plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2.0, 1.0)
    made, pixels = classifier(), raw(7)
    expected = plain(made, pixels)
    exact = made.predict(pixels, precision="fp32").probabilities
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(made.probabilities(torch.from_numpy(pixels)).numpy(), exact, rtol=1e-4, atol=1e-7)
    rough = made.predict(pixels).probabilities
    assert not np.array_equal(rough, exact)
    assert abs(rough - expected).max() < 0.02
    mirrored = made.predict(pixels, tta_flip=True, precision="fp32").probabilities
    np.testing.assert_allclose(
        mirrored, made.predict(pixels[..., ::-1], tta_flip=True, precision="fp32").probabilities, rtol=1e-4
    )


def test_changed_weights_are_seen() -> None:
    made, pixels = classifier(), raw(3)
    before = made.predict(pixels).probabilities
    assert made._dispatcher is not None and made._dispatcher.fp32 is not None
    with torch.no_grad():
        made.model.blocks[2].convs[2].bias += torch.arange(10.0)
    after = made.predict(pixels, precision="fp32").probabilities
    np.testing.assert_allclose(after, plain(made, pixels), rtol=1e-4, atol=1e-7)
    assert abs(after - before).max() > 0.1
    made.model.load_state_dict(network(init="paper").state_dict())
    np.testing.assert_allclose(made.predict(pixels, precision="fp32").probabilities, plain(made, pixels), rtol=1e-4)
    made.model.blocks[2].convs[2] = nn.Conv2d(192, 10, 1)
    np.testing.assert_allclose(made.predict(pixels, precision="fp32").probabilities, plain(made, pixels), rtol=1e-4)


def test_a_hook_sees_its_layer() -> None:
    made, seen = classifier(), []
    made.predict(raw(2))
    handle = made.model.blocks[1].register_forward_hook(lambda module, given, out: seen.append(tuple(out.shape)))
    made.predict(raw(2))
    assert seen == [(2, 192, 8, 8)]
    handle.remove()
    made.predict(raw(2))
    assert len(seen) == 1


def test_a_network_that_gives_no_numbers_is_still_refused() -> None:
    for model in (with_huge_weights(), with_a_missing_number()):
        with pytest.raises(ModelFileError, match="NaN or infinity"):
            classifier(model).predict(raw(2))


def test_pixels_that_are_too_large_for_it_go_to_the_plain_network() -> None:
    made = classifier()
    made.predict(raw(2))
    assert made._dispatcher is not None
    for value in (float("nan"), 2e6, -2e6):
        x = draw(2, 3, 32, 32)
        x[1, 2, 3, 4] = value
        assert made._dispatcher.choose("fp32", x) is None
    assert made._dispatcher.choose("fp32", draw(2, 3, 32, 32)) is made._dispatcher.fp32


def test_an_engine_that_is_wrong_or_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Engine, x: Tensor) -> Tensor:
        raise RuntimeError("not for this CPU")

    right = Engine.__call__
    for broken in (lambda self, x: right(self, x) * 1.1, failing):
        monkeypatch.setattr(Engine, "__call__", broken)
        made, pixels = classifier(), raw(3)
        np.testing.assert_allclose(made.predict(pixels).probabilities, plain(made, pixels), rtol=1e-6)
        assert made._dispatcher is not None and made._dispatcher.fp32 is None and made._dispatcher.bf16 is None


def test_a_small_network_is_left_as_it_is() -> None:
    model = network("nin_tiny", in_channels=3, size=(32, 32), num_classes=10)
    made = classifier(model)
    made.predict(raw(2))
    assert made._dispatcher is not None and made._dispatcher.fp32 is None


def test_images_of_another_size_go_to_the_plain_network() -> None:
    made, other = classifier(), torch.from_numpy(raw(2))[:, :, :29]
    made.logits(other)
    assert made._dispatcher is None
    made.predict(raw(2))
    assert made._dispatcher is not None and made._dispatcher.fp32 is not None
    with torch.no_grad():
        expected = made.model(made.preprocessing(other))
    torch.testing.assert_close(made.logits(other), expected, rtol=1e-5, atol=1e-6)
    assert set(made._dispatcher.fp32.graphs) == {1}


def test_images_that_are_too_small_are_refused_with_and_without_an_engine() -> None:
    made = classifier()
    small = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    with pytest.raises(UsageError) as before:
        made.logits(small)
    made.predict(raw(1))
    assert made._dispatcher is not None and made._dispatcher.fp32 is not None
    with pytest.raises(UsageError) as after:
        made.logits(small)
    assert str(after.value) == str(before.value)


def test_there_are_two_precisions() -> None:
    with pytest.raises(UsageError, match=r"precision is 'bf16'; .*accepted: auto, fp32\."):
        classifier().predict(raw(1), precision="bf16")  # type: ignore[arg-type]


def test_the_state_of_a_network_is_unknown_where_changes_are_not_counted() -> None:
    model = network(width=0.1)
    assert state_of(modules_of(model)) == state_of(modules_of(model))
    assert set(modules_of(model)) == set(model.modules())
    with torch.inference_mode():
        unseen = network(width=0.1)
    assert state_of(modules_of(unseen)) is None


@BF16
def test_a_trained_network_says_the_same_in_both_formats(tmp_path: Any) -> None:
    run = mlpconv.fit("digits", out=tmp_path / "run", epochs=2, min_steps=1, precision="fp32")
    made, test = run.classifier, mlpconv.open_data("digits").split("train")
    with torch.inference_mode():
        x = made.preprocessing(torch.from_numpy(test.images[:997]))
        exact, rough = (Engine(chain(made.model, (8, 8)), dtype)(x).softmax(1) for dtype in BOTH)
    assert (exact.argmax(1).numpy() == test.labels[:997]).mean() > 0.8
    assert (exact.argmax(1) == rough.argmax(1)).double().mean() > 0.99
    assert float((exact - rough).abs().mean()) < 0.005


def test_engines_are_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = []
    prepare = Dispatcher.prepare.__func__
    monkeypatch.setattr(
        Dispatcher, "prepare", classmethod(lambda cls, *given: prepared.append(1) or prepare(cls, *given))
    )
    made = classifier()
    for _ in range(3):
        made.predict(raw(2))
    assert len(prepared) == 1


def test_a_classifier_that_is_not_to_be_compiled_is_not() -> None:
    made, pixels = classifier(), raw(3)
    made.compiled = False
    np.testing.assert_array_equal(made.predict(pixels).probabilities, plain(made, pixels))
    assert made._dispatcher is None


def test_many_large_images_are_computed_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made, pixels, seen, forward = classifier(), raw(21), [], Classifier._forward
    expected = made.predict(pixels, precision="fp32", tta_flip=True).probabilities
    monkeypatch.setattr("mlpconv.inference.classifier.VALUES_AT_A_TIME", 11 * 3 * 32 * 32)
    monkeypatch.setattr(Classifier, "_forward", lambda self, x, *given: seen.append(len(x)) or forward(self, x, *given))
    found = made.predict(pixels, precision="fp32", tta_flip=True).probabilities
    assert seen == [8, 8, 5] * 2
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
