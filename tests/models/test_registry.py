"""Networks by name and from configurations, and which options are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpconv.errors import UsageError
from mlpconv.models import FAMILY_OPTIONS, build, create_model, list_models


def test_list_models_returns_all_names() -> None:
    names = list_models()
    assert names == sorted(names)
    assert {"googlenet", "nin_cifar10", "nin_cifar100", "nin_imagenet", "nin_mnist", "nin_svhn"} <= set(names)
    assert {"nin_tiny", "nin_photo", "conv_cifar10", "conv_mnist"} <= set(names)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("nin_cifar", {}, "did you mean 'nin_cifar10'"),
        (
            "digits",
            {"pretrained": True},
            "the architecture nin_tiny: mlpconv.load\\('digits'\\) opens it, and source='dig",
        ),
        ("nin_cifar10_taught", {}, "a trained network of the architecture nin_cifar10"),
        ("nin_mnist", {"clases": 3}, "no option 'clases'"),
        ("nin_mnist", {"num_clases": 3}, "did you mean 'num_classes'"),
        ("nin_mnist", {"num_classes": 0}, "from 1 to 16384"),
        ("nin_mnist", {"num_classes": True}, "num_classes is True"),
        ("nin_mnist", {"num_classes": "10"}, "num_classes is '10'"),
        ("nin_mnist", {"in_channels": 2.0}, "in_channels is 2.0"),
        ("nin_mnist", {"width": 0}, "above 0"),
        ("nin_mnist", {"width": float("nan")}, "above 0"),
        ("nin_mnist", {"width": 60}, "parameters; at most"),
        ("nin_mnist", {"activation": "rellu"}, "did you mean 'relu'"),
        ("nin_mnist", {"norm": "layer"}, "accepted: batch"),
        ("nin_mnist", {"dropout": 1}, "below 1"),
        ("nin_mnist", {"dropout": -0.1}, "at least 0"),
        ("nin_mnist", {"last_relu": 1}, "True and False"),
        ("nin_mnist", {"head": "flat"}, "accepted: fc, fc\\+dropout, gap"),
        ("nin_mnist", {"init": "zeros"}, "accepted: he, identity, paper"),
        ("nin_mnist", {"pool2": "none"}, "accepted: avg, max"),
        ("nin_mnist", {"pool_first": "yes"}, "True and False"),
        (
            "nin_mnist",
            {"size": 3},
            "nin_mnist got a size of 3x3; images of at least 4x4 are accepted.*size=4 or more, or .* another",
        ),
        ("nin_mnist", {"size": (31, 3)}, "got a size of 31x3; .* at least 4x4"),
        ("nin_mnist", {"size": 0}, "rows is 0; a whole number from 1 to 4096"),
        ("nin_mnist", {"size": (28, 28, 1)}, "size is"),
        ("nin_mnist", {"size": "28"}, "size is '28'"),
        ("nin_mnist", {"size": (28,)}, "one number, or two"),
        ("googlenet", {"pool2": "avg"}, "no option 'pool2'"),
        ("googlenet", {"size": 30}, "googlenet got a size of 30x30; images of at least 31x31 are accepted"),
        ("googlenet", {"width": 64}, "parameters; at most"),
        ("nin_imagenet", {"head": "fc", "size": 4096}, "parameters; at most"),
    ],
    ids=str,
)
def test_invalid_options_are_refused(name: str, options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        create_model(name, **options)


def test_none_is_the_default_of_the_network() -> None:
    assert create_model("nin_tiny", dropout=None, width=None).config == create_model("nin_tiny").config
    assert create_model("nin_tiny", norm=None).config.norm is None


def test_every_option_has_help() -> None:
    assert set(FAMILY_OPTIONS) == {"nin", "conv", "googlenet", "squeezenet", "efficientnet_lite"}
    for options in FAMILY_OPTIONS.values():
        assert {"num_classes", "in_channels", "size", "width", "dropout"} <= set(options)
        assert all(options.values())
    for family in ("nin", "conv", "googlenet"):
        assert {"activation", "norm", "last_relu", "head", "init"} <= set(FAMILY_OPTIONS[family])


def described(name: str = "nin_tiny") -> dict[str, Any]:
    return json.loads(json.dumps(create_model(name).config.to_dict()))


def with_block(**settings: Any) -> dict[str, Any]:
    given = described()
    given["blocks"][0] |= settings
    return given


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "family is None"),
        ([], "family is None"),
        ({}, "family is None"),
        ({"family": "resnet"}, "Accepted: conv, efficientnet_lite, googlenet, nin, squeezenet"),
        ({"family": ["nin"]}, "family is"),
        ({"family": "nin"}, "lacks the required setting"),
        (described() | {"weights": 1}, "no setting 'weights'"),
        (described() | {"dropuot": 1}, "did you mean 'dropout'"),
        (described() | {"blocks": []}, "number of blocks is 0"),
        (described() | {"blocks": 3}, "blocks is 3"),
        (described() | {"blocks": described()["blocks"] * 30}, "at most 64"),
        (described() | {"blocks": [7]}, "A block is 7"),
        (described() | {"name": ""}, "1 to 64"),
        (described() | {"name": 5}, "1 to 64"),
        (described() | {"size": [8, 10**9]}, "size is 1000000000"),
        (described() | {"size": 8}, "size is 8"),
        (described() | {"norm": {}}, "norm is"),
        (described() | {"activation": [1]}, "activation is"),
        (with_block(kernel=65), "from 1 to 64"),
        (with_block(kernel=3.0), "kernel is 3.0"),
        (with_block(channels=[10**6]), "from 1 to 16384"),
        (with_block(channels=[16384, 16384, 16384]), "parameters; at most"),
        (with_block(channels=[]), "number of convolutions"),
        (with_block(channels="abc"), "channels is 'abc'"),
        (with_block(channels=[8] * 17), "at most 16"),
        (with_block(stride=0), "stride is 0"),
        (with_block(padding=3), "padding is 3"),
        (with_block(padding=-1), "padding is -1"),
        (with_block(pool="mean"), "Accepted: avg, max, none"),
        (with_block(stds=[0.1]), "stds has 1"),
        (with_block(stds=["x"] * 3), "standard deviation"),
        (with_block(pickle="x"), "no setting 'pickle'"),
        (described("googlenet") | {"blocks": []}, "no setting 'blocks'"),
        (described("googlenet") | {"name": "x" * 999}, "name is"),
        (described("googlenet") | {"size": [224]}, "one number, or two"),
        (described("googlenet") | {"width": 1e9}, "width is"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_configurations_are_refused(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        build(given)
    assert len(str(caught.value)) < 500


def test_strides_too_large_for_any_image_are_refused() -> None:
    block = {"kernel": 64, "channels": [1], "stride": 64, "pool": "max"}
    with pytest.raises(UsageError, match="more than 4096 pixels"):
        build(described() | {"blocks": [block] * 64})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)


@settings(max_examples=40)
@given(key=st.sampled_from(sorted(described())), value=JSON, name=st.sampled_from(["nin_tiny", "googlenet"]))
def test_any_value_is_built_or_refused(key: str, value: Any, name: str) -> None:
    if isinstance(value, int) and value > 64:
        value = 64  # legal but large networks take seconds to fill
    given = described("nin_tiny") if name == "nin_tiny" else described(name) | {"width": 0.1}
    try:
        model = build(given | {key: value})
    except UsageError:
        return
    assert build(model.config.to_dict()).config == model.config
