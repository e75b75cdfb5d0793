"""Kernels that grow in training: early steps compute and learn the middle of each inner kernel alone.

Around the middle the weights are zero, so leaving them out changes no output: the network is the whole one all the
time, and a 5x5 convolution costs 9/25 while only its 3x3 middle learns. From zero the rim then learns like the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlpconv.models.base import Network

__all__ = ["growing", "limit", "remarks"]


def growing(model: Network, side: int) -> Iterator[nn.Conv2d]:
    """The convolutions of which the middle `side` x `side` can stand for the whole: not the one that sees the image."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module is not model.first_conv and isinstance(module.padding, tuple):
            height, width = module.kernel_size
            margin = (height - side) // 2
            if height == width and margin > 0 and min(module.padding) >= margin and max(module.dilation) == 1:
                yield module


@torch.no_grad()
def limit(model: Network, side: int | None) -> None:
    """Compute and learn only the middle `side` x `side` of inner kernels, with zeros around it; None: all of them."""
    for module in model.modules():
        module.__dict__.pop("forward", None)
    if side is None:
        return
    for conv in growing(model, side):
        middle = _Middle(conv, side)
        whole = torch.zeros_like(conv.weight)
        middle.of(whole).copy_(middle.of(conv.weight))
        conv.weight.copy_(whole)
        conv.forward = middle  # type: ignore[method-assign, assignment]


def remarks(model: Network, sides: Sequence[int]) -> Iterator[str]:
    """What to say of sides that leave every kernel of this network as it is."""
    if sides and not any(growing(model, sides[0])):
        yield (
            f"kernels={','.join(map(str, sides))} changes nothing for {model.config.name}: behind its first layer no "
            f"padded kernel is larger than {sides[0]}x{sides[0]}."
        )


class _Middle:
    """The forward pass of a convolution whose kernel is zero around its middle."""

    def __init__(self, conv: nn.Conv2d, side: int) -> None:
        self.conv, self.margin = conv, (conv.kernel_size[0] - side) // 2

    def of(self, weight: Tensor) -> Tensor:
        """The middle of a weight (out, in, k, k)."""
        return weight[:, :, self.margin : -self.margin, self.margin : -self.margin]

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, h, w), as the whole kernel would."""
        conv = self.conv
        rows, columns = (int(side) - self.margin for side in conv.padding)
        return F.conv2d(x, self.of(conv.weight), conv.bias, conv.stride, (rows, columns), 1, conv.groups)
