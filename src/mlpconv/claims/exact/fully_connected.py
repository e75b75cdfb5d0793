"""Claim 7: a fully connected layer is a 1x1 convolution with a full connection table."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mlpconv.claims.cases import apart, draw, integer, pointwise
from mlpconv.claims.schema import Check, Claim

__all__ = ["CLAIM"]


def layer(rng: np.random.Generator) -> float:
    """Compare nn.Linear on a vector with a 1x1 on a 1 x 1 image of as many channels."""
    features, out = integer(rng, 1, 40), integer(rng, 1, 40)
    x, conv = draw(rng, integer(rng, 1, 5), features), pointwise(rng, features, out)
    return apart(nn.functional.linear(x, conv.weight.flatten(1), conv.bias), conv(x[:, :, None, None])[:, :, 0, 0])


def whole_network(rng: np.random.Generator) -> float:
    """Convert flatten and two linear layers to convolutions; compare on every crop of a larger image."""
    channels, side, hidden, out = (integer(rng, 1, 5) for _ in range(4))
    first, second = draw(rng, hidden, channels * side**2), draw(rng, out, hidden)
    biases = draw(rng, hidden), draw(rng, out)
    x = draw(rng, 1, channels, side + integer(rng, 0, 4), side + integer(rng, 0, 4))
    kernel = first.reshape(hidden, channels, side, side)
    maps = nn.functional.conv2d(nn.functional.conv2d(x, kernel, biases[0]).relu(), second[:, :, None, None], biases[1])
    crops = x.unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5).flatten(3)
    vectors = nn.functional.linear(nn.functional.linear(crops, first, biases[0]).relu(), second, biases[1])
    return apart(maps, vectors.permute(0, 3, 1, 2))


def package_networks(rng: np.random.Generator) -> float:
    """Convert a random convolutional network with a fully connected head by `surgery.convolutionalize`."""
    from mlpconv.surgery import convolutionalize

    width, side = integer(rng, 1, 7), integer(rng, 4, 9)
    torch_seed = int(rng.integers(2**31))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed)
        model = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * (side - 2) ** 2, 5), nn.ReLU(),
            nn.Linear(5, 4),
        ).double().eval()  # fmt: skip
    converted = convolutionalize(model, (3, side, side)).model
    x = draw(rng, 2, 3, side, side)
    return apart(model(x), converted(x).reshape(2, 4))


CLAIM = Claim(
    number=7,
    name="fully-connected",
    title="A fully connected layer is a 1x1",
    words="In convolutional nets there is no such thing as fully connected layers, only convolution layers with 1x1 "
    "kernels and a full connection table.",
    source="Yann LeCun, post of 6 April 2015",
    method="nn.Linear must equal a 1x1 on a 1 x 1 image. Flatten and two linear layers must equal a k x k convolution "
    "and a 1x1, on every crop of a larger image at once. Whole networks are converted by "
    "`mlpconv surgery convolutionalize`.",
    overturn="A crop for which the converted network gives another answer.",
    checks=(
        Check("nn.Linear = 1x1 on a 1 x 1 image", layer),
        Check("flatten and linear layers = convolutions, on every crop of a larger image", whole_network),
        Check("whole networks converted by surgery.convolutionalize", package_networks, cases=20),
    ),
)
