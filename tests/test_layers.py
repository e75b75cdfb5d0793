"""The layers against their definitions, computed in NumPy pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mlpconv.errors import UsageError
from mlpconv.layers import (
    ACTIVATIONS,
    GlobalAveragePool,
    Maxout,
    MLPConv,
    activation_pieces,
    convolved_size,
    make_activation,
    make_pool,
    pooled_size,
)

DEFINITIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.1 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "identity": lambda x: x,
    "maxout": lambda x: np.maximum(x[..., 0::2], x[..., 1::2]),
}


def patches(image: np.ndarray, kernel: int, stride: int, padding: int) -> np.ndarray:
    """Return every patch of an image (C, H, W) as (h, w, C*kernel*kernel)."""
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
    return windows.transpose(1, 2, 0, 3, 4).reshape(windows.shape[1], windows.shape[2], -1)


def sliding_mlp(layer: MLPConv, image: np.ndarray, name: str, kernel: int, stride: int, padding: int) -> np.ndarray:
    """Apply a multilayer perceptron to every patch: (C, H, W) -> (D, h, w)."""
    x = patches(image, kernel, stride, padding)
    for conv in layer.convs:
        weight = conv.weight.detach().double().numpy().reshape(conv.out_channels, -1)
        x = DEFINITIONS[name](x @ weight.T + conv.bias.detach().double().numpy())
    return x.transpose(2, 0, 1)


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(DEFINITIONS)),
    channels=st.lists(st.sampled_from([1, 2, 3, 5, 7]), min_size=1, max_size=3),
    inputs=st.sampled_from([1, 2, 3]),
    kernel=st.sampled_from([1, 2, 3, 5]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    size=st.sampled_from([(5, 7), (7, 5), (11, 5), (13, 7)]),
)
def test_mlpconv_is_an_mlp_applied_to_every_patch(
    name: str, channels: list[int], inputs: int, kernel: int, stride: int, padding: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(sum(channels) + kernel)
    layer = MLPConv(inputs, channels, kernel, stride, padding, name).double()
    images = torch.randn(2, inputs, *size, dtype=torch.float64)
    expected = [sliding_mlp(layer, image.numpy(), name, kernel, stride, padding) for image in images]
    np.testing.assert_allclose(layer(images).detach().numpy(), np.stack(expected), rtol=1e-9, atol=1e-9)


def test_last_activation_false_omits_norm_and_activation() -> None:
    torch.manual_seed(0)
    bare = MLPConv(2, (3, 5), 3, padding=1, activation="maxout", norm="batch", last_activation=False)
    assert [conv.out_channels for conv in bare.convs] == [6, 5]
    assert isinstance(bare.norms[0], nn.BatchNorm2d)
    assert isinstance(bare.norms[1], nn.Identity)
    assert bare(torch.randn(3, 2, 7, 7)).min() < 0


def test_batch_norm_is_between_convolution_and_activation() -> None:
    torch.manual_seed(1)
    layer = MLPConv(2, (3,), 1, padding=0, norm="batch").eval()
    norm = layer.norms[0]
    for tensor, low in ((norm.running_mean, -1.0), (norm.running_var, 0.5), (norm.weight, -1.0), (norm.bias, -1.0)):
        nn.init.uniform_(tensor, low, 2.0)
    x = torch.randn(2, 2, 5, 7)
    weight, bias = layer.convs[0].weight[:, :, 0, 0], layer.convs[0].bias
    y = torch.einsum("oc,nchw->nohw", weight, x) + bias[:, None, None]
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = ((y - norm.running_mean[:, None, None]) * gain[:, None, None] + norm.bias[:, None, None]).clamp_min(0)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("size", [(2, 3), (3, 2), (5, 7), (7, 11), (28, 13), (32, 32)])
def test_pools_have_no_padding_and_round_their_size_up(kind: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).normal(size=size)
    rows, columns = (-((3 - side) // 2) + 1 for side in size)
    expected = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = image[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]  # the last one may be cut: only real pixels count
            expected[i, j] = window.max() if kind == "max" else window.mean()
    pooled = make_pool(kind)(torch.from_numpy(image)[None, None])
    np.testing.assert_allclose(pooled[0, 0].numpy(), expected)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("norm", [None, "batch"])
def test_pooling_before_the_activation_is_bitwise_equal(activation: str, norm: str | None) -> None:
    torch.manual_seed(2)
    layer = MLPConv(3, (5, 7), 3, padding=1, activation=activation, norm=norm, pool=make_pool("max"))
    plain = MLPConv(3, (5, 7), 3, padding=1, activation=activation, norm=norm)
    if norm:
        nn.init.uniform_(layer.norms[-1].weight, -1, 1)  # a negative weight turns the maximum round
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 13, 11)
    outputs = []
    for module, after in ((layer, nn.Identity()), (plain, make_pool("max"))):
        pixels = x.clone().requires_grad_()
        y = after(module(pixels))
        y.square().sum().backward()
        outputs.append((y, pixels.grad))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])


def test_relu_is_computed_on_pooled_pixels_only() -> None:
    layer = MLPConv(1, (2,), 3, padding=1, pool=make_pool("max"))
    seen: list[torch.Size] = []
    layer.activations[0].register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    layer(torch.randn(1, 1, 8, 8))
    assert seen == [torch.Size([1, 2, 4, 4])]


def test_average_pool_comes_after_the_activation() -> None:
    torch.manual_seed(3)
    layer = MLPConv(1, (2,), 3, padding=1, pool=make_pool("avg"), pool_first=True)
    x = torch.randn(1, 1, 7, 7)
    torch.testing.assert_close(layer(x), make_pool("avg")(layer.convs[0](x).relu()))


def test_pool_first_comes_before_the_norm() -> None:
    torch.manual_seed(4)
    layer = MLPConv(1, (3,), 3, padding=1, norm="batch", pool=make_pool("max"), pool_first=True).eval()
    nn.init.constant_(layer.norms[0].weight, -1.0)
    x = torch.randn(2, 1, 7, 5)
    expected = layer.norms[0](make_pool("max")(layer.convs[0](x))).relu()
    assert torch.equal(layer(x), expected)
    layer.pool_at = "norm"
    assert not torch.allclose(layer(x), expected)


def test_maxout_is_the_maximum_of_consecutive_channels() -> None:
    x = torch.randn(2, 15, 3, 5)
    expected = np.stack([x.numpy()[:, i : i + 3].max(1) for i in range(0, 15, 3)], axis=1)
    assert np.array_equal(Maxout(3)(x).numpy(), expected)
    assert "pieces=3" in repr(Maxout(3))
    with pytest.raises(UsageError, match="multiple of 2"):
        Maxout(2)(x)
    with pytest.raises(UsageError, match="pieces=0"):
        Maxout(0)


def test_global_average_pool_is_the_mean_over_rows_and_columns() -> None:
    maps = torch.randn(3, 5, 7, 11, dtype=torch.float64)
    np.testing.assert_allclose(GlobalAveragePool()(maps).numpy(), maps.numpy().mean((2, 3)))


@pytest.mark.parametrize("kernel", range(1, 12))
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_sizes_agree_with_torch(kernel: int, stride: int) -> None:
    conv, pool = nn.Conv2d(1, 1, kernel, stride, padding=kernel // 2), make_pool("max")
    for size in range(2, 40):
        x = torch.zeros(1, 1, size, size)
        assert convolved_size(size, kernel, stride, kernel // 2) == conv(x).shape[2]
        assert pooled_size(size) == pool(x).shape[2]
    assert pooled_size(1) == 0
    assert convolved_size(10, 11, 4, 0) == 0


def test_activations_by_name() -> None:
    for name in ACTIVATIONS:
        assert make_activation(name)(torch.randn(1, 4, 3, 3)).shape[1] == 4 // activation_pieces(name)
    with pytest.raises(UsageError, match="did you mean 'relu'"):
        make_activation("rellu")


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="no channels"):
        MLPConv(3, ())
    with pytest.raises(UsageError, match="'group'"):
        MLPConv(3, norm="group")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'mean'"):
        make_pool("mean")
