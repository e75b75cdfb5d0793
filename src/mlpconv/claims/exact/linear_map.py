"""Claim 2: a 1x1 is the same linear map of the channels at every position."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mlpconv.claims.cases import apart, image, integer, pointwise
from mlpconv.claims.schema import Check, Claim

__all__ = ["CLAIM"]


def commutes(rng: np.random.Generator) -> float:
    """Shuffle the pixels before and after a 1x1 with ReLU."""
    x = image(rng)
    conv = pointwise(rng, x.shape[1], integer(rng, 1, 17))
    order = torch.from_numpy(rng.permutation(x.shape[2] * x.shape[3]))

    def shuffled(maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(2)[:, :, order].reshape(maps.shape)

    return apart(conv(shuffled(x)).relu(), shuffled(conv(x).relu()))


def sliding_mlp(rng: np.random.Generator) -> float:
    """Compare two 1x1s with nn.Linear layers on every pixel: outputs and the gradients of input and weights."""
    x = image(rng).requires_grad_()
    hidden, out = integer(rng, 1, 17), integer(rng, 1, 17)
    convs = nn.Sequential(pointwise(rng, x.shape[1], hidden), nn.ReLU(), pointwise(rng, hidden, out))
    layers = nn.Sequential(
        nn.Linear(x.shape[1], hidden, dtype=x.dtype), nn.ReLU(), nn.Linear(hidden, out, dtype=x.dtype)
    )
    with torch.no_grad():
        for conv, linear in zip(convs.parameters(), layers.parameters(), strict=True):
            linear.copy_(conv.reshape(linear.shape))
    y = x.detach().clone().requires_grad_()
    maps = convs(x)
    vectors = layers(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    for result in (maps, vectors):
        F.softplus(result).sum().backward()  # any smooth function of the outputs
    ours = [x.grad, *(parameter.grad for parameter in convs.parameters())]
    theirs = [y.grad, *(parameter.grad for parameter in layers.parameters())]
    gradients = [
        (p.flatten(), q.flatten()) for p, q in zip(ours, theirs, strict=True) if p is not None and q is not None
    ]
    return max(apart(a, b) for a, b in [(maps, vectors), *gradients])


CLAIM = Claim(
    number=2,
    name="linear-map",
    title="The same MLP at every pixel",
    words='A 1x1 convolution is a "coordinate transformation in filter space": a linear map of the channel vector, the '
    "same at every position; with ReLU, a multilayer perceptron slid over the image.",
    source="Lin, Chen and Yan (2014), section 3.1; LeCun's remark that fully connected layers are 1x1 convolutions",
    method="Shuffling the pixels before the 1x1 must equal shuffling them after it, so the map does not depend on "
    "coordinates. Two 1x1s with ReLU must equal nn.Linear, ReLU, nn.Linear on every pixel, in outputs and in all "
    "gradients.",
    overturn="A 1x1 whose result depends on where a pixel stands.",
    checks=(
        Check("commutes with every permutation of the pixels", commutes),
        Check("equals nn.Linear layers on every pixel, in outputs and gradients", sliding_mlp),
    ),
)
