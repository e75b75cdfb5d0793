"""Networks of every kind of graph for tests of profiles, and an oracle that computes receptive fields by gradients."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpconv import Maxout
from support.wrapped import Lambda


class Bottleneck(nn.Module):
    """ResNet v1.5 block: 1x1, strided 3x3, 1x1, and a strided 1x1 shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


def resnet(depths: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> nn.Module:
    """ResNet-50 with the default depths and width."""
    blocks, channels = [], width
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if index == 0 and stage > 0 else 1
            blocks.append(Bottleneck(channels, width * 2**stage, stride))
            channels = 4 * width * 2**stage
    return nn.Sequential(
        nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes),
    )  # fmt: skip


class Shuffle(nn.Module):
    """ShuffleNet unit: convolve half of the channels, then shuffle the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(nn.Conv2d(half, half, 1), nn.Conv2d(half, half, 3, 1, 1, groups=half), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        y = torch.cat([left, self.branch(right)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Squeeze(nn.Module):
    """Squeeze and excitation: every cell is multiplied by a gate computed from the whole image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, 2, 1)
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * F.adaptive_avg_pool2d(x, 1).mul(1).add(self.gate(x.mean((2, 3), keepdim=True))).sigmoid()


class WindowAttention(nn.Module):
    """Swin block: patches, then attention inside (shifted) windows."""

    def __init__(self, width: int = 8, window: int = 2, shift: int = 0) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 3, 3)
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.window, self.shift = window, shift

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        k = self.window
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(n, h // k, k, w // k, k, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, k * k, c)
        q, key, v = self.qkv(y).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, key, v)
        y = y.view(n, h // k, w // k, k, k, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        y = torch.roll(y, (self.shift, self.shift), (1, 2))
        return (x + y).permute(0, 3, 1, 2)


conv = nn.Conv2d


def in_place_on_a_part(m: Any, x: Tensor) -> Tensor:
    """Write in place into a slice of a tensor."""
    y = m.a(x)
    half = y[:, :2]
    half += m.b(x)[:, :2]
    return y


def shifted_copy(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    out = torch.zeros_like(y)
    out[:, :1, 1:] = y[:, :1, :-1]
    out[:, 1:] = y[:, 1:]
    return out


def linear_at_each_place(m: Any, x: Tensor) -> Tensor:
    """Apply a channels-last linear layer as ConvNeXt does; it flattens rows and columns internally."""
    return m.c(m.b(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def pixel_shuffle_by_hand(m: Any, x: Tensor) -> Tensor:
    """Rows share a dimension with the channels that become rows, not with columns."""
    y = m.a(x)
    n, _, h, w = y.shape
    return y.view(n, 2, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, 2, 2 * h, 2 * w)


def cut_by_strides(m: Any, x: Tensor) -> Tensor:
    """Crop the first row and column with as_strided."""
    y = m.a(x)
    h, w = y.shape[2:]
    return y.as_strided((1, 4, h - 1, w - 1), (4 * h * w, h * w, w, 1), w + 1)


GRAPHS: dict[str, nn.Module] = {
    "asymmetric": nn.Sequential(conv(3, 4, (1, 5), 1, (0, 2)), conv(4, 4, (3, 1), (2, 1), (1, 0), dilation=(2, 1))),
    "strided 1x1": nn.Sequential(conv(3, 4, 1, 2), conv(4, 4, 3, 1, 1), conv(4, 4, 1, 3)),
    "ceil pooling": nn.Sequential(conv(3, 4, 5, 1, 2), nn.MaxPool2d(3, 2, ceil_mode=True), conv(4, 4, 3, padding=1)),
    "padded pooling": nn.Sequential(nn.AvgPool2d(3, 2, 1, ceil_mode=True), conv(3, 4, 2)),
    "residual": nn.Sequential(conv(3, 8, 3, 2, 1), Bottleneck(8, 4, 2), Bottleneck(16, 4, 1)),
    "shuffled channels": nn.Sequential(conv(3, 8, 3, 2, 1), Shuffle(8), Shuffle(8)),
    "squeeze": Squeeze(4),
    "part of a mixture": Lambda(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1).chunk(2, 1)[0]),
        a=conv(3, 4, 1),
        b=conv(3, 4, 7, 1, 3),
        c=conv(4, 4, 3, 1, 1),
    ),
    "depthwise of a mixture": Lambda(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1))[:, 2:6:3],
        a=conv(3, 4, 1),
        b=conv(3, 4, 7, 1, 3),
        c=conv(8, 8, 3, 1, 1, groups=8),
    ),
    "grouped after a mixture": Lambda(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1))[:, :3],
        a=conv(3, 4, 1),
        b=conv(3, 4, 7, 1, 3),
        c=conv(8, 6, 3, 1, 1, groups=2),
    ),
    "crop and pad": Lambda(
        lambda m, x: m.b(F.pad(m.a(x)[:, :, 2:-1, ::2], (2, 0, 1, 3))), a=conv(3, 4, 3), b=conv(4, 4, 3)
    ),
    "reflection": Lambda(
        lambda m, x: m.b(F.pad(m.a(x), (2, 1, 1, 2), mode="reflect")), a=conv(3, 4, 3, 2), b=conv(4, 4, 3)
    ),
    "enlarged": Lambda(
        lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2, mode="bilinear")), a=conv(3, 4, 3, 2), b=conv(4, 4, 3)
    ),
    "enlarged, corners": Lambda(
        lambda m, x: F.interpolate(m.a(x), size=(11, 17), mode="bilinear", align_corners=True), a=conv(3, 4, 3, 2)
    ),
    "enlarged, nearest": Lambda(
        lambda m, x: m.b(F.interpolate(m.a(x), size=(17, 11))), a=conv(3, 4, 3, 3), b=conv(4, 4, 3)
    ),
    "transposed": nn.Sequential(
        conv(3, 4, 3, 2), nn.ConvTranspose2d(4, 4, 3, 2, 1, 1), nn.ConvTranspose2d(4, 4, (2, 3))
    ),
    "adaptive": nn.Sequential(conv(3, 4, 3), nn.AdaptiveAvgPool2d((4, 5)), conv(4, 4, 2)),
    "flipped": Lambda(lambda m, x: m.a(x) + m.a(x).flip(3), a=conv(3, 4, 3)),
    "rolled": Lambda(lambda m, x: m.a(x) + m.a(x).roll((1, 2), (2, 3)), a=conv(3, 4, 3, 2)),
    "linear at each place": Lambda(linear_at_each_place, a=conv(3, 4, 3, 2), b=nn.Linear(4, 5), c=conv(5, 4, (1, 3))),
    "pixel shuffle by hand": Lambda(pixel_shuffle_by_hand, a=conv(3, 8, 3, 2)),
    "cut by strides": Lambda(cut_by_strides, a=conv(3, 4, 3)),
    "instance norm": nn.Sequential(conv(3, 4, 3), nn.InstanceNorm2d(4)),
    "group norm": nn.Sequential(conv(3, 4, 3), nn.GroupNorm(2, 4)),
    "windows": WindowAttention(),
    "shifted windows": WindowAttention(shift=1),
    "in place on a part": Lambda(in_place_on_a_part, a=conv(3, 4, 1), b=conv(3, 4, 5, 1, 2)),
    "shifted copy": Lambda(shifted_copy, a=conv(3, 4, 3)),
    "stacked": Lambda(lambda m, x: torch.stack([m.a(x), m.b(x)], 2).amax(2), a=conv(3, 4, 3, 1, 1), b=conv(3, 4, 1)),
    "rows forgotten": Lambda(lambda m, x: m.a(x) * m.b(x).mean(3, keepdim=True), a=conv(3, 4, 3), b=conv(3, 4, 3)),
    "pixel shuffle": nn.Sequential(conv(3, 8, 3, 2), nn.PixelShuffle(2)),
    "softmax along rows": Lambda(lambda m, x: m.b(m.a(x).softmax(3)), a=conv(3, 4, 3, 2), b=conv(4, 4, 2)),
    "gated": Lambda(
        lambda m, x: F.glu(torch.cat([m.a(x), m.b(x)], 1), 1), a=conv(3, 4, 3, 1, 1), b=conv(3, 4, (1, 5), 1, (0, 2))
    ),
    "maxout": nn.Sequential(conv(3, 8, 3, 2), Maxout(2)),
    "dynamic kernel": Lambda(
        lambda m, x: F.conv2d(x, (m.a(x).mean((0, 2, 3)).reshape(4, 3, 1, 1)).expand(4, 3, 3, 3)), a=conv(3, 12, 3)
    ),
}


def generic(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy in which no gradients cancel: positive weights, average pools for max pools, no ReLU."""
    model = copy.deepcopy(model).double().eval()
    source = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
        parameter.data = (torch.rand(parameter.shape, generator=source, dtype=torch.float64) + 0.5) / fan
    for module in model.modules():
        if isinstance(module, nn.MaxPool2d):
            module.forward = lambda x, m=module: F.avg_pool2d(x, m.kernel_size, m.stride, m.padding, m.ceil_mode)
        if isinstance(module, nn.ReLU):
            module.forward = lambda x: x * 1.0
    return model


Span = tuple[int, int]


class Oracle:
    """Receptive fields by gradients: a cell sees a pixel if the gradient is not zero."""

    def __init__(self, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
        source = torch.Generator().manual_seed(7)
        self.image = torch.rand((1, *input_shape), generator=source, dtype=torch.float64).add(0.5).requires_grad_()
        self.output = generic(model)(self.image)
        self.mix = torch.rand(self.output.shape[1], generator=source, dtype=torch.float64) + 0.5

    def spans(self, row: int, column: int) -> tuple[Span, Span]:
        """Return the first and last row and column that this cell sees, in any channel."""
        cell = (self.output[0, :, row, column] * self.mix).sum()
        (gradient,) = torch.autograd.grad(cell, self.image, retain_graph=True, allow_unused=True)
        if gradient is None or not bool(gradient.any()):
            return (0, -1), (0, -1)
        visible = (gradient[0] != 0).any(0)
        rows, columns = visible.any(1).nonzero().flatten(), visible.any(0).nonzero().flatten()
        return (int(rows[0]), int(rows[-1])), (int(columns[0]), int(columns[-1]))
