"""The layers of Network In Network (Lin, Chen and Yan, arXiv 1312.4400).

Notation: N images, C channels, H rows, W columns, K classes.

- mlpconv layer (section 3.1): a k x k convolution, then 1x1 convolutions, each followed by an activation: a small
  multilayer perceptron applied to every patch of the image.
- global average pooling (section 3.2): one feature map per class, whose mean is the logit of the class.
- maxout (which section 2 compares with): the maximum of several linear functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from mlpconv.errors import UsageError, did_you_mean

__all__ = [
    "ACTIVATIONS",
    "GlobalAveragePool",
    "MLPConv",
    "Maxout",
    "Norm",
    "activation_pieces",
    "convolved_size",
    "make_activation",
    "make_pool",
    "pooled_size",
]

Norm = Literal["batch"]


class Maxout(nn.Module):
    """Take the maximum of each group of `pieces` consecutive channels: (N, pieces*C, H, W) -> (N, C, H, W).

    Raises UsageError if the number of channels is not a multiple of `pieces`.
    """

    def __init__(self, pieces: int = 2) -> None:
        super().__init__()
        if pieces < 1:
            raise UsageError(f"Maxout got pieces={pieces}; a whole number from 1 is accepted.")
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        """(N, pieces*C, ...) -> (N, C, ...)."""
        if x.shape[1] % self.pieces:
            raise UsageError(f"Maxout got {x.shape[1]} channels; a multiple of {self.pieces} is accepted.")
        grouped = x.reshape(x.shape[0], x.shape[1] // self.pieces, self.pieces, *x.shape[2:])
        return grouped.max(2).values

    def extra_repr(self) -> str:
        """Return what the module's repr shows."""
        return f"pieces={self.pieces}"


class GlobalAveragePool(nn.Module):
    """Average each category map over its positions: (N, K, h, w) -> (N, K) (section 3.2)."""

    def forward(self, maps: Tensor) -> Tensor:
        """(N, K, h, w) -> (N, K)."""
        return maps.mean(dim=(2, 3))


# ReLU works in place: nothing else reads the output of the convolution before it.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "maxout": Maxout,
    "identity": nn.Identity,
}

# Increasing functions: max(f(x)) = f(max(x)), bit for bit and in the gradient.
POOLS_FIRST = ("relu", "leaky_relu", "identity")


def make_activation(name: str) -> nn.Module:
    """Return a new activation module by name; raise UsageError for an unknown name."""
    if name not in ACTIVATIONS:
        raise UsageError(f"There is no activation {name!r}; {did_you_mean(str(name), ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def activation_pieces(name: str) -> int:
    """Return the number of convolution channels per channel after the activation: 2 for maxout, otherwise 1."""
    return 2 if name == "maxout" else 1


class MLPConv(nn.Module):
    """An mlpconv layer (section 3.1): (N, C, H, W) -> (N, channels[-1], h, w).

    A k x k convolution to channels[0] is followed by a 1x1 convolution to each further entry of `channels`. Every
    convolution has a bias and is followed by a norm (None or "batch") and an activation; `last_activation=False` omits
    both after the last one. With activation "maxout" each convolution has twice the channels.

    `pool` follows the last activation. A max-pool before an increasing activation gives the same outputs with a quarter
    of the activations, so it is computed there. `pool_first=True` moves the pool before the norm as well, which is
    faster but a different network: a negative norm weight turns the maximum into a minimum.
    Raises UsageError for empty channels, an unknown activation or norm.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (192, 160, 96),
        kernel_size: int = 5,
        stride: int = 1,
        padding: int = 2,
        activation: str = "relu",
        norm: Norm | None = None,
        last_activation: bool = True,
        *,
        pool: nn.Module | None = None,
        pool_first: bool = False,
    ) -> None:
        super().__init__()
        if not channels:
            raise UsageError("MLPConv got no channels; one number per convolution is accepted, such as (192, 160, 96).")
        if norm not in (None, "batch"):
            raise UsageError(f"There is no norm {norm!r}; None and 'batch' are accepted.")
        pieces = activation_pieces(activation)
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        self.activations = nn.ModuleList()
        for index, width in enumerate(channels):
            linear = index == len(channels) - 1 and not last_activation
            out = width if linear else width * pieces
            if index == 0:
                self.convs.append(nn.Conv2d(in_channels, out, kernel_size, stride, padding))
            else:
                self.convs.append(nn.Conv2d(channels[index - 1], out, 1))
            self.norms.append(nn.BatchNorm2d(out) if norm == "batch" and not linear else nn.Identity())
            self.activations.append(nn.Identity() if linear else make_activation(activation))
        self.pool = pool
        self.pool_at = _pool_position(pool, activation, pool_first)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, channels[-1], h, w)."""
        return self.forward_last(self.forward_hidden(x))

    def forward_hidden(self, x: Tensor) -> Tensor:
        """Apply all convolutions but the last: (N, C, H, W) -> (N, channels[-2], h, w)."""
        for index in range(len(self.convs) - 1):
            x = self.activations[index](self.norms[index](self.convs[index](x)))
        return x

    def forward_last(self, x: Tensor) -> Tensor:
        """Apply the last convolution and the pool: (N, channels[-2], h, w) -> (N, channels[-1], h, w)."""
        x = self.convs[-1](x)
        for step, module in (("conv", self.norms[-1]), ("norm", self.activations[-1])):
            x = module(self.pool(x) if self.pool is not None and self.pool_at == step else x)
        return self.pool(x) if self.pool is not None and self.pool_at == "activation" else x


def _pool_position(pool: nn.Module | None, activation: str, pool_first: bool) -> Literal["conv", "norm", "activation"]:
    """Return the step of the last convolution after which the pool is computed."""
    if not isinstance(pool, nn.MaxPool2d):
        return "activation"
    if pool_first:
        return "conv"
    return "norm" if activation in POOLS_FIRST else "activation"


def pooled_size(size: int, kernel: int = 3, stride: int = 2) -> int:
    """Return the rows after pooling without padding that rounds up; 0 or less if no window fits."""
    return -((kernel - size) // stride) + 1


def convolved_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Return the rows after a convolution; 0 or less if the kernel does not fit."""
    return (size + 2 * padding - kernel) // stride + 1


def make_pool(kind: str) -> nn.Module | None:
    """Return the paper's pool (3x3, stride 2, size rounded up) for `kind` "max" or "avg"; None for "none"."""
    if kind == "max":
        return nn.MaxPool2d(3, 2, ceil_mode=True)
    if kind == "avg":
        return nn.AvgPool2d(3, 2, ceil_mode=True)
    if kind == "none":
        return None
    raise UsageError(f"There is no pooling {kind!r}; {did_you_mean(str(kind), ('max', 'avg', 'none'))}")
