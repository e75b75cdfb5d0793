"""SqueezeNet and EfficientNet-Lite: the published sizes, other libraries' outputs, NumPy's, and the shipped weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mlpconv
from mlpconv.errors import UsageError
from mlpconv.models import Network, create_model
from mlpconv.models.external import import_vision
from mlpconv.models.folding import fold_norm
from mlpconv.models.weights import pretrained_names

Array = np.ndarray
SIZES = [(224, 224), (127, 95), (33, 47)]
PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "photos"


def trained(name: str, **options: object) -> Network:
    """A small network as training leaves one: no weight, bias or statistic at its starting value."""
    torch.manual_seed(5)
    model = create_model(name, num_classes=7, width=0.25, **options)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if getattr(module, "bias", None) is not None:
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model.double().eval()


def library(name: str) -> nn.Module:
    """The same network as torchvision or timm builds it."""
    try:
        if name == "squeezenet":
            return import_vision("torchvision.models").squeezenet1_1(weights=None).eval()
        return import_vision("timm").create_model("tf_efficientnet_lite0").eval()
    except UsageError:
        pytest.skip("the extra `vision` is not installed")


@pytest.mark.parametrize(("name", "parameters"), [("squeezenet", 1_235_496), ("efficientnet_lite0", 4_652_008)])
def test_the_published_number_of_parameters(name: str, parameters: int) -> None:
    model = create_model(name)
    assert model.config.parameters == sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("name", ["squeezenet", "efficientnet_lite0"])
def test_equal_to_the_library_with_the_same_weights(name: str) -> None:
    torch.manual_seed(0)
    other, own = library(name), create_model(name).eval()
    own.load_state_dict(other.state_dict())
    for size in SIZES:
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(own(images), other(images), rtol=1e-5, atol=1e-6)


def convolved(x: Array, conv: nn.Conv2d, pads: tuple[tuple[int, int], tuple[int, int]]) -> Array:
    """(C, H, W) -> (D, h, w) with groups, from the definition."""
    weight = conv.weight.detach().numpy()
    k, s = conv.kernel_size[0], conv.stride[0]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), *pads)), (k, k), axis=(1, 2))[:, ::s, ::s]
    each = len(x) // conv.groups
    groups = zip(np.split(weight, conv.groups), np.split(windows, conv.groups), strict=True)
    out = np.concatenate([np.tensordot(w, v, ([1, 2, 3], [0, 3, 4])) for w, v in groups])
    assert each == weight.shape[1]
    return out if conv.bias is None else out + conv.bias.detach().numpy()[:, None, None]


def same(x: Array, conv: nn.Conv2d) -> Array:
    """The convolution padded as TensorFlow's SAME: the smaller half of the zeros first."""
    k, s = conv.kernel_size[0], conv.stride[0]
    totals = [max((-(-side // s) - 1) * s + k - side, 0) for side in x.shape[1:]]
    first, second = ((total // 2, total - total // 2) for total in totals)
    return convolved(x, conv, (first, second))


def normed(x: Array, norm: nn.BatchNorm2d) -> Array:
    mean, var, weight, bias = (
        tensor.detach().numpy()[:, None, None]
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / np.sqrt(var + norm.eps) * weight + bias


@pytest.mark.parametrize("size", [(37, 41), (38, 43)])
def test_efficientnet_lite_by_its_definition(size: tuple[int, int]) -> None:
    model = trained("efficientnet_lite0")
    image = torch.randn(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x = np.clip(normed(same(image[0].numpy(), model.conv_stem), model.bn1), 0, 6)
    for stage in model.blocks:
        for block in stage:
            before = x
            layers = [module for module in block.children() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
            convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
            norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
            for index, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
                x = normed(same(x, conv), norm)
                x = np.clip(x, 0, 6) if index < len(convs) - 1 else x
            x = x + before if before.shape == x.shape else x
    features = np.clip(normed(same(x, model.conv_head), model.bn2), 0, 6)
    weight, bias = model.classifier.weight.detach().numpy(), model.classifier.bias.detach().numpy()
    with torch.no_grad():
        np.testing.assert_allclose(model.forward_features(image)[0].numpy(), features, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(model(image)[0].numpy(), weight @ features.mean((1, 2)) + bias, rtol=1e-8)


def test_squeezenet_by_its_definition() -> None:
    model = trained("squeezenet")
    image = torch.randn(1, 3, 37, 41, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    none, one = ((0, 0), (0, 0)), ((1, 1), (1, 1))
    x = np.maximum(convolved(image[0].numpy(), model.features[0], none), 0)
    for layer in list(model.features)[2:]:
        if isinstance(layer, nn.MaxPool2d):
            counts = [-((3 - side) // 2) + 1 for side in x.shape[1:]]
            x = np.stack(
                [
                    np.stack([x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(counts[1])], 1)
                    for i in range(counts[0])
                ],
                1,
            )
        else:
            squeezed = np.maximum(convolved(x, layer.squeeze, none), 0)
            wide = [convolved(squeezed, layer.expand1x1, none), convolved(squeezed, layer.expand3x3, one)]
            x = np.maximum(np.concatenate(wide), 0)
    maps = np.maximum(convolved(x, model.last_conv, none), 0)
    with torch.no_grad():
        np.testing.assert_allclose(model.category_maps(image)[0].numpy(), maps, rtol=1e-8, atol=1e-8)
    assert maps.std() > 1e-3


def test_batch_norm_folds_into_the_convolutions() -> None:
    model = trained("efficientnet_lite0")
    folded = fold_norm(model)
    image = torch.randn(2, 3, 45, 39, dtype=torch.float64)
    assert folded.config.norm is None
    assert folded.config.parameters == sum(parameter.numel() for parameter in folded.parameters())
    with torch.no_grad():
        torch.testing.assert_close(folded(image), model(image), rtol=1e-9, atol=1e-9)


def test_pretrained_networks_of_other_classes_share_all_but_the_classifier() -> None:
    whole = create_model("squeezenet", pretrained=True).eval()
    other = create_model("squeezenet", pretrained=True, num_classes=7, size=95).eval()
    image = 50 * torch.randn(2, 3, 95, 95)
    with torch.no_grad():
        assert torch.equal(other.forward_features(image), whole.forward_features(image))
        assert other(image).shape == (2, 7)


def test_a_pretrained_network_of_grey_images_sees_what_the_one_of_colours_does() -> None:
    colour, grey = (create_model("squeezenet", pretrained=True, in_channels=c).eval() for c in (3, 1))
    image = 50 * torch.randn(2, 1, 95, 95)
    with torch.no_grad():
        expected = colour.forward_features(image.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey.forward_features(image), expected, rtol=1e-4, atol=1e-3)


def test_what_no_weights_ship_for_or_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="No weights of 'googlenet' ship with the package"):
        create_model("googlenet", pretrained=True)
    with pytest.raises(UsageError, match="do not fit these options: features.0.weight is"):
        create_model("squeezenet", pretrained=True, width=0.5)
    assert set(pretrained_names()) >= {"squeezenet", "efficientnet_lite0", "nin_cifar10"}


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photographs are not there")
@pytest.mark.parametrize(
    ("photo", "classes"),
    [
        ("chelsea.png", {"Egyptian cat"}),
        ("coffee.png", {"espresso"}),
        ("astronaut.png", {"stethoscope", "bobsled"}),
        ("rocket.jpg", {"drilling platform", "missile"}),
    ],
)
def test_the_shipped_weights_name_what_the_photographs_show(photo: str, classes: set[str]) -> None:
    for name in ("squeezenet", "efficientnet_lite0"):
        assert mlpconv.load(name).predict(PHOTOS / photo, precision="fp32")[0].label in classes
