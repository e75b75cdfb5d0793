"""Every network against the interface of `Network`."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mlpconv.errors import UsageError
from mlpconv.models import FAMILY_OPTIONS, Network, build, create_model, list_models

_MADE: dict[str, Network] = {}


@pytest.fixture(params=list_models())
def model(request: pytest.FixtureRequest) -> Network:
    """Return each network once, in eval mode; tests must not change it."""
    if request.param not in _MADE:
        torch.manual_seed(0)
        _MADE[request.param] = create_model(request.param).eval()
    return _MADE[request.param]


NORM = {"norm": "batch", "activation": "elu"}


def some_of(model: Network, options: dict[str, str]) -> dict[str, str]:
    """Return the options that the network's family accepts."""
    return {name: value for name, value in options.items() if name in FAMILY_OPTIONS[model.config.family]}


def some_images(model: Network, rows: int, columns: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, model.in_channels, rows, columns, generator=torch.Generator().manual_seed(1))


def test_an_incomplete_network_class_is_abstract() -> None:
    class Half(Network):
        def category_maps(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(TypeError, match=r"abstract.*first_stages.*last_conv.*last_layer"):
        Half()


def test_images_of_the_input_size_give_logits(model: Network) -> None:
    images = some_images(model, *model.input_size[1:])
    with torch.no_grad():
        logits, maps = model(images), model.category_maps(images)
    assert logits.shape == (2, model.num_classes)
    assert logits.dtype == torch.float32
    assert maps.shape[:2] == (2, model.num_classes)
    assert logits.std() > 0
    torch.testing.assert_close(logits, maps.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_any_size_from_the_minimum_works(model: Network) -> None:
    low = model.min_size
    with torch.no_grad():
        for size in ((low, low), (low, low + 3), (low + 5, low)):
            maps = model.category_maps(some_images(model, *size))
            logits = model(some_images(model, *size))
            assert logits.shape == (2, model.num_classes)
            torch.testing.assert_close(logits, maps.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_images_below_the_minimum_size_are_refused_naming_it(model: Network) -> None:
    low = model.min_size
    for size in ((low - 1, low), (low, low - 1), (min(1, low - 1),) * 2):
        for call in (model, model.category_maps):
            with pytest.raises(UsageError, match=f"at least {low}x{low} is accepted"):
                call(some_images(model, *size))


def test_other_tensors_than_preprocessed_images_are_refused(model: Network) -> None:
    rows, columns = model.input_size[1:]
    with pytest.raises(UsageError, match=f"{model.in_channels + 1} channels; {model.in_channels} are accepted"):
        model(torch.zeros(1, model.in_channels + 1, rows, columns))
    with pytest.raises(UsageError, match="3 dimensions"):
        model(torch.zeros(model.in_channels, rows, columns))
    with pytest.raises(UsageError, match="uint8"):
        model(torch.zeros(1, model.in_channels, rows, columns, dtype=torch.uint8))


def test_the_configuration_rebuilds_the_network(model: Network) -> None:
    described = json.loads(json.dumps(model.config.to_dict(), allow_nan=False))
    again = build(described).eval()
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    images = some_images(model, model.min_size, model.min_size + 2)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


def test_the_configuration_is_frozen(model: Network) -> None:
    with pytest.raises(AttributeError):
        model.config.name = "other"  # type: ignore[misc]


def test_attributes_agree_with_the_outputs(model: Network) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == model.config.parameters
    assert model.input_size[0] == model.in_channels == model.first_conv.in_channels
    assert min(model.input_size[1:]) >= model.min_size
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert model.first_conv is convs[0]
    if model.last_conv is not None:
        assert model.last_conv is convs[-1]
        assert model.last_conv is model.last_layer
        assert model.last_conv.out_channels == model.num_classes


def test_other_classes_channels_and_width(model: Network) -> None:
    narrow = create_model(model.config.name, num_classes=7, in_channels=2, width=0.25, **some_of(model, NORM))
    narrow.eval()
    with torch.no_grad():
        assert narrow(torch.randn(3, 2, narrow.min_size, narrow.min_size)).shape == (3, 7)
    assert build(narrow.config.to_dict()).config == narrow.config


def test_every_parameter_receives_a_gradient(model: Network) -> None:
    torch.manual_seed(3)
    trained = create_model(model.config.name, width=0.25, num_classes=5, **some_of(model, {"init": "he"}))
    rows = min(64, trained.input_size[1])
    loss = cross_entropy(trained(some_images(trained, rows, rows, 4)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    for name, parameter in trained.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_forward_head_of_forward_features_is_forward(model: Network) -> None:
    images = some_images(model, model.min_size + 4, model.min_size + 7)
    with torch.no_grad():
        features = model.forward_features(images)
        assert features.shape[:2] == (2, model.num_features)
        assert torch.equal(model.forward_head(features), model(images))


def test_reset_classifier_keeps_the_features(model: Network) -> None:
    images = some_images(model, model.min_size + 4, model.min_size + 7)
    other = copy.deepcopy(model)
    other.reset_classifier(7)
    assert other.num_classes == other.config.num_classes == 7
    assert build(other.config.to_dict()).state_dict().keys() == other.state_dict().keys()
    assert not any(module.training for module in other.modules())
    with torch.no_grad():
        assert torch.equal(other.forward_features(images), model.forward_features(images))
        assert other(images).shape == (2, 7)
        torch.testing.assert_close(other.category_maps(images).mean((2, 3)), other(images), rtol=1e-4, atol=1e-5)
    described = build(other.config.to_dict())
    described.load_state_dict(other.state_dict())


def test_copies_and_memory_formats_agree(model: Network) -> None:
    images = some_images(model, model.min_size + 6, model.min_size + 9)
    copied = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        swapped = copied(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(swapped, model(images), rtol=1e-3, atol=1e-4)
