"""Whole networks against a forward pass written from the definitions in NumPy and SciPy, on images of prime sides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch import nn

from mlpconv.models import create_model

Array = np.ndarray


def conv(x: Array, layer: nn.Conv2d, stride: int, padding: int) -> Array:
    """(C, H, W) -> (D, h, w): every patch times every filter, plus the bias."""
    weight, bias = (tensor.detach().double().numpy() for tensor in (layer.weight, layer.bias))
    k = weight.shape[2]
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(1, 2))[:, ::stride, ::stride]
    return np.tensordot(weight, windows, ([1, 2, 3], [0, 3, 4])) + bias[:, None, None]


def conv_scipy(x: Array, layer: nn.Conv2d, stride: int, padding: int) -> Array:
    """The same from SciPy's two-dimensional correlation."""
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    maps = []
    for weight, bias in zip(layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy(), strict=True):
        total = sum(correlate2d(padded[c], weight[c], mode="valid") for c in range(len(x)))
        maps.append(total[::stride, ::stride] + bias)
    return np.stack(maps)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def pool(x: Array, kind: str = "max", kernel: int = 3, stride: int = 2, padding: int = 0) -> Array:
    """Windows from 0, their number rounded up, cut at the border."""
    if padding:
        x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)), constant_values=-np.inf)
    counts = [-((kernel - side) // stride) + 1 for side in x.shape[1:]]
    out = np.empty((len(x), *counts))
    for i in range(counts[0]):
        for j in range(counts[1]):
            window = x[:, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            out[:, i, j] = window.max((1, 2)) if kind == "max" else window.mean((1, 2))
    return out


PAPER = {  # kernel, stride, padding of each block and the pool after it, from the paper's table
    "nin_cifar10": [(5, 1, 2, "max"), (5, 1, 2, "max"), (3, 1, 1, None)],
    "nin_cifar100": [(5, 1, 2, "max"), (5, 1, 2, "max"), (3, 1, 1, None)],
    "nin_svhn": [(5, 1, 2, "max"), (5, 1, 2, "max"), (5, 1, 2, None)],
    "nin_mnist": [(5, 1, 2, "max"), (5, 1, 2, "max"), (5, 1, 2, None)],
    "nin_imagenet": [(11, 4, 0, "max"), (5, 1, 2, "max"), (3, 1, 1, "max"), (3, 1, 1, None)],
}


def nin(x: Array, model: nn.Module, blocks: list, convolve=conv, last_relu: bool = True) -> Array:
    """(C, H, W) -> category maps (K, h, w) of a paper network, mlpconv or linear."""
    convs = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    for index, (_, stride, padding, kind) in enumerate(blocks):
        x = relu(convolve(x, convs.pop(0), stride, padding))
        if index == len(blocks) - 1:
            while convs:
                x = convolve(x, convs.pop(0), 1, 0)
                x = relu(x) if convs or last_relu else x
        else:
            while convs and convs[0].kernel_size == (1, 1):
                x = relu(convolve(x, convs.pop(0), 1, 0))
        x = pool(x, kind) if kind else x
    return x


def alive(model: nn.Module) -> nn.Module:
    """Draw weights so large that every layer matters, and biases that are not 0."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.double().eval()


def check_forward(model: nn.Module, expected: Array, x: torch.Tensor) -> None:
    with torch.no_grad():
        np.testing.assert_allclose(model.category_maps(x)[0].numpy(), expected, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(model(x)[0].numpy(), expected.mean((1, 2)), rtol=1e-8, atol=1e-8)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("name", sorted(PAPER))
@pytest.mark.parametrize("family", ["nin", "conv"])
def test_paper_networks(name: str, family: str) -> None:
    torch.manual_seed(0)
    model = alive(create_model(name.replace("nin", family)))
    size = (67, 71) if name == "nin_imagenet" else (19, 23)
    x = torch.randn(1, model.in_channels, *size, dtype=torch.float64)
    check_forward(model, nin(x[0].numpy(), model, PAPER[name]), x)


@pytest.mark.parametrize(("pool2", "last_relu"), [("avg", True), ("max", False)])
def test_both_authors_variants_by_scipy(pool2: str, last_relu: bool) -> None:
    torch.manual_seed(1)
    options = {"pool2": pool2, "last_relu": last_relu, "width": 0.05, "num_classes": 3}
    model = alive(create_model("nin_cifar10", **options))
    x = torch.randn(1, 3, 13, 17, dtype=torch.float64)
    blocks = [PAPER["nin_cifar10"][0], (5, 1, 2, pool2), PAPER["nin_cifar10"][2]]
    check_forward(model, nin(x[0].numpy(), model, blocks, conv_scipy, last_relu), x)


@pytest.mark.parametrize("pool_first", [False, True])
def test_batch_norm_and_a_leading_pool(pool_first: bool) -> None:
    torch.manual_seed(2)
    model = alive(create_model("nin_tiny", pool_first=pool_first, last_relu=True))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.running_mean, -1),
                (module.running_var, 0.5),
                (module.weight, -1),
                (module.bias, -1),
            ):
                nn.init.uniform_(tensor, low, 1)
    pixels = torch.randn(1, 1, 13, 11, dtype=torch.float64)
    x = pixels[0].numpy()
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    assert (len(convs), len(norms)) == (9, 8)
    for index, layer in enumerate(convs):
        x = conv(x, layer, 1, layer.padding[0])
        pools_here = index in (2, 5)
        x = pool(x) if pools_here and pool_first else x
        if index < 8:
            n = norms[index]
            mean, var, weight, bias = (
                t.detach().numpy()[:, None, None] for t in (n.running_mean, n.running_var, n.weight, n.bias)
            )
            x = (x - mean) / np.sqrt(var + n.eps) * weight + bias
        x = relu(x)
        x = pool(x) if pools_here and not pool_first else x
    check_forward(model, x, pixels)


@pytest.mark.parametrize("head", ["fc", "fc+dropout"])
def test_fully_connected_heads(head: str) -> None:
    torch.manual_seed(3)
    model = alive(create_model("nin_mnist", head=head, size=(11, 13)))
    x = torch.randn(1, 1, 11, 13, dtype=torch.float64)
    maps = nin(x[0].numpy(), model, PAPER["nin_mnist"])
    weight, bias = (tensor.detach().numpy() for tensor in (model.last_layer.weight, model.last_layer.bias))
    expected = weight @ maps.reshape(-1) + bias
    np.testing.assert_allclose(model(x)[0].detach().numpy(), expected, rtol=1e-8, atol=1e-8)


def response_norm(x: Array) -> Array:
    """x / (1 + 1e-4 / 5 * the sum of squares over 5 neighbouring channels) ** 0.75."""
    squares = np.pad(x**2, ((2, 2), (0, 0), (0, 0)))
    total = sum(squares[i : i + len(x)] for i in range(5))
    return x / (1 + 1e-4 / 5 * total) ** 0.75


def googlenet(x: Array, model: nn.Module) -> dict[str, Array]:
    """(C, H, W) -> what every Inception module makes, from Table 1 of the GoogLeNet paper."""
    convs = iter([layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d) and "aux" not in name])
    x = response_norm(pool(relu(conv(x, next(convs), 2, 3))))
    x = relu(conv(x, next(convs), 1, 0))
    x = pool(response_norm(relu(conv(x, next(convs), 1, 1))))
    found = {}
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        x = pool(x) if name in ("4a", "5a") else x
        one = relu(conv(x, next(convs), 1, 0))
        three = relu(conv(relu(conv(x, next(convs), 1, 0)), next(convs), 1, 1))
        five = relu(conv(relu(conv(x, next(convs), 1, 0)), next(convs), 1, 2))
        project = relu(conv(pool(x, "max", 3, 1, 1), next(convs), 1, 0))
        x = found[name] = np.concatenate([one, three, five, project])
    return found


def test_googlenet() -> None:
    torch.manual_seed(4)
    model = alive(create_model("googlenet", num_classes=7, aux_heads=True, size=(89, 97)))
    x = torch.randn(1, 3, 89, 97, dtype=torch.float64)
    found = googlenet(x[0].numpy(), model)
    weight, bias = (tensor.detach().numpy() for tensor in (model.linear.weight, model.linear.bias))
    with torch.no_grad():
        outputs = model.outputs(x)
    check_forward(model, np.tensordot(weight, found["5b"], 1) + bias[:, None, None], x)
    np.testing.assert_allclose(outputs.logits[0].numpy(), weight @ found["5b"].mean((1, 2)) + bias, rtol=1e-8)
    for name, logits in (("4a", outputs.aux1), ("4d", outputs.aux2)):
        head = [layer for layer in model.aux[name].modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
        pooled = found[name][:, :5, :5].mean((1, 2), keepdims=True)  # the one whole 5x5 window of 5 x 6 places
        x4 = relu(conv(pooled, head[0], 1, 0)).reshape(-1)
        for layer in head[1:]:
            x4 = layer.weight.detach().numpy() @ (relu(x4) if layer is head[2] else x4) + layer.bias.detach().numpy()
        np.testing.assert_allclose(logits[0].numpy(), x4, rtol=1e-8)
