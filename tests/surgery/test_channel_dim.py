"""The channel dimension follows from the data flow: a 1x1 mixes channels in every layout, never rows or columns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.small_networks import assert_same, images, shaken
from torch import nn
from torch.nn import functional as F

from mlpconv.errors import SurgeryError
from mlpconv.layers import Maxout
from mlpconv.surgery import deepen
from mlpconv.surgery.tracing.channel_dim import channel_dim

IMAGE = (3, 13, 11)
C = 6
Forward = Callable[["Net", torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """A convolution to C channels; `steps` is the forward pass, `place` the module to deepen."""

    def __init__(self, steps: Forward, place: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.steps, self.place = steps, place or nn.ReLU()
        self.conv, self.mix, self.head = nn.Conv2d(3, C, 3), nn.Linear(C, C), nn.Linear(C, 5)
        self.norm, self.tokens = nn.LayerNorm(C), nn.Linear(99, 99)
        self.bank = nn.Parameter(torch.randn(C, C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.steps(self, x)


def last(net: Net, x: torch.Tensor) -> torch.Tensor:
    """ReLU on feature maps (N, H, W, C), as in ConvNeXt."""
    return net.head(net.place(net.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))


def attended(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Return (N, H, W, C) after attention between pixels with two heads, as in a Swin transformer."""
    n, c, h, w = net.conv(x).shape
    q = net.mix(net.conv(x).flatten(2).transpose(1, 2)).reshape(n, h * w, 2, c // 2).transpose(1, 2)
    y = F.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(n, h, w, c)
    return net.head(net.place(y).mean((1, 2)))


def mixed_places(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Return (N, C, H, W) after a linear layer over all positions, whose last dimension is not channels."""
    y = net.conv(x)
    return net.head(net.place(net.tokens(y.flatten(2)).reshape(y.shape)).mean((2, 3)))


def grouped(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Return (N, C, H, W) after attention over groups of channels, as in ResNeSt."""
    y = net.conv(torch.cat([x, x], 0)[: len(x)])
    z = torch.cat([y, y], 1).reshape(len(y), 2, C, *y.shape[2:])
    return net.head(net.place((z * z.mean((3, 4), keepdim=True).softmax(1)).sum(1)).mean((2, 3)))


LAYOUTS: dict[str, tuple[Forward, int | None]] = {
    "second": (lambda net, x: net.head(net.place(net.conv(x)).mean((2, 3))), 1),
    "last": (last, 3),
    "back again": (lambda net, x: net.head(net.place(last_norm(net, x).permute(0, 3, 1, 2)).mean((2, 3))), 1),
    "a linear layer": (lambda net, x: net.head(net.place(net.mix(last_norm(net, x))).mean((1, 2))), 3),
    "a product": (lambda net, x: net.head(net.place(last_norm(net, x) @ net.bank).mean((1, 2))), 3),
    "a product from the left": (
        lambda net, x: net.head(net.place((net.bank @ net.conv(x).flatten(2)).unflatten(2, (11, 9))).mean((2, 3))), 1
    ),
    "attention": (attended, 3),
    "places mixed": (mixed_places, 1),
    "groups": (grouped, 1),
    "shuffled": (lambda net, x: net.head(net.place(F.channel_shuffle(net.conv(x), 3)).mean((2, 3))), 1),
    "softmax over channels": (lambda net, x: net.head(net.place(net.conv(x).softmax(1)).mean((2, 3))), 1),
    "branches": (
        lambda net, x: net.head(net.place(torch.cat([net.conv(x)[:, :2], net.conv(x)[:, 2:]], 1)).mean((2, 3))), 1
    ),
    "one channel": (lambda net, x: net.head(net.conv(x).mean((2, 3)) * net.place(x[:, :1]).mean((2, 3))), 1),
    "tokens": (lambda net, x: net.head(net.place(net.conv(x).flatten(2).transpose(1, 2)).mean(1)), 2),
    "between": (lambda net, x: net.head(net.place(net.conv(x).permute(0, 2, 1, 3)).mean((1, 3))), 2),
    "lines": (lambda net, x: net.head(net.place(net.conv(x).flatten(2)).mean(2)), 1),
    "shared with rows": (
        lambda net, x: net.head(net.place(net.conv(x).reshape(len(x), C * 11, 1, 9)).reshape(-1, C, 99).mean(2)), None
    ),
}  # fmt: skip


REFUSED = ("between", "lines", "shared with rows")


def last_norm(net: Net, x: torch.Tensor) -> torch.Tensor:
    """(N, H, W, C)."""
    return net.norm(net.conv(x).permute(0, 2, 3, 1))


@pytest.mark.parametrize(("steps", "dim"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_channel_dimension_follows_from_the_data_flow(steps: Forward, dim: int | None) -> None:
    net = Net(steps)
    assert channel_dim(net, "place", IMAGE) == dim
    if steps not in [LAYOUTS[name][0] for name in REFUSED]:
        assert_same(net, deepen(net, "place", input_shape=IMAGE, activation="prelu").model, IMAGE)
    else:
        dimension = "channel dimension cannot be inferred" if dim is None else f"channels are dimension {dim};"
        with pytest.raises(SurgeryError, match=rf"place \(ReLU\) returns \('N', .*{dimension}"):
            deepen(net, "place", input_shape=IMAGE)


@pytest.mark.parametrize("size", [(13, 11), (17, 12)])
def test_a_channels_last_linear_layer_mixes_channels_at_any_size(size: tuple[int, int]) -> None:
    net = Net(last).double()
    changed = deepen(net, "place", "he", input_shape=IMAGE, activation="gelu").model
    insert = changed.place.deepened
    assert insert.conv.weight.shape == (C, C)
    x = images(2, 3, *size)
    with torch.no_grad():
        mixed = F.conv2d(net.conv(x).relu(), insert.conv.weight[..., None, None], insert.conv.bias)
        assert torch.allclose(changed(x), net.head(F.gelu(mixed).mean((2, 3))), atol=1e-12)


@pytest.mark.parametrize("place", [nn.Linear(C, C), nn.LayerNorm(C), nn.Sequential(nn.Linear(C, C), nn.GELU())])
def test_channels_last_linear_layers_and_norms_are_deepened(place: nn.Module) -> None:
    net = shaken(Net(last, place)).double()
    changed = deepen(net, "place", input_shape=IMAGE).model
    assert changed.get_submodule("place.deepened.conv").weight.shape == (C, C)
    for size in (IMAGE, (3, 9, 15)):
        assert_same(net, changed, size)


class Norm2d(nn.LayerNorm):
    """Layer norm over the second dimension, as in timm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_a_layer_norm_that_permutes_its_input_has_channels_second() -> None:
    net = Net(LAYOUTS["second"][0], Norm2d(C))
    changed = deepen(net, "place", input_shape=IMAGE).model
    assert changed.place.deepened.conv.weight.shape == (C, C, 1, 1)
    assert_same(net, changed, (3, 16, 10))


@pytest.mark.parametrize(("options", "what"), [({"norm": True}, "a batch norm"), ({"activation": "maxout"}, "maxout")])
def test_channels_first_options_are_rejected_for_channels_last(options: dict, what: str) -> None:
    with pytest.raises(SurgeryError, match=f"with the channels last, and {what} works along the second"):
        deepen(Net(last), "place", input_shape=IMAGE, **options)
    deepen(Net(LAYOUTS["second"][0]), "place", input_shape=IMAGE, **options)


def test_a_channels_last_prelu_has_one_slope() -> None:
    changed = deepen(Net(last, nn.GELU()), "place", input_shape=IMAGE, activation="prelu").model
    assert changed.place.deepened.activation.num_parameters == 1
    changed(torch.randn(2, 3, 19, 14))


def test_maxout_pieces_leave_the_channels_second() -> None:
    net = Net(lambda net, x: net.head(net.place(torch.cat([net.conv(x)] * 2, 1)).mean((2, 3))), Maxout())
    assert channel_dim(net, "place", IMAGE) == 1
