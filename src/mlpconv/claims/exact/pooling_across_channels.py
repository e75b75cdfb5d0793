"""Claim 8: 1x1s are cross-channel parametric pooling: sum, mean, difference, and with two layers the maximum."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from mlpconv.claims.cases import apart, draw, image, integer, pointwise
from mlpconv.claims.schema import Check, Claim

__all__ = ["CLAIM"]


def linear_pools(rng: np.random.Generator) -> float:
    """Construct sum, mean and difference of channels as one 1x1 without bias."""
    x = image(rng, integer(rng, 2, 17))
    channels = x.shape[1]
    weight = torch.zeros(3, channels, 1, 1, dtype=x.dtype)
    weight[0], weight[1] = 1, 1 / channels
    weight[2, 0], weight[2, 1] = 1, -1
    expected = torch.stack([x.sum(1), x.mean(1), x[:, 0] - x[:, 1]], dim=1)
    return apart(nn.functional.conv2d(x, weight), expected)


def maximum(rng: np.random.Generator) -> float:
    """Construct max(a, b) = relu(a - b) + relu(b) - relu(-b) as two 1x1s with ReLU between."""
    x = image(rng, 2)
    hidden = torch.tensor([[1.0, -1.0], [0.0, 1.0], [0.0, -1.0]], dtype=x.dtype)[:, :, None, None]
    out = torch.tensor([[1.0, 1.0, -1.0]], dtype=x.dtype)[:, :, None, None]
    return apart(nn.functional.conv2d(nn.functional.conv2d(x, hidden).relu(), out), x.amax(1, keepdim=True))


def learned(rng: np.random.Generator) -> float:
    """Learn max(a, b) with two 1x1s of 8 hidden channels from random pixels; return the rms error on new pixels."""
    layers = nn.Sequential(pointwise(rng, 2, 8), nn.ReLU(), pointwise(rng, 8, 1))
    optimizer = torch.optim.LBFGS(layers.parameters(), max_iter=400, line_search_fn="strong_wolfe")
    x, new = draw(rng, 1, 2, 20, 20), draw(rng, 1, 2, 20, 20)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = (layers(x) - x.amax(1, keepdim=True)).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return float((layers(new) - new.amax(1, keepdim=True)).square().mean().sqrt())


CLAIM = Claim(
    number=8,
    name="channel-pooling",
    title="Parametric pooling across channels",
    words="A 1x1 convolution is cross-channel parametric pooling: a weighted sum of feature maps; a cascade of them "
    "can pool in more complex ways.",
    source="Lin, Chen and Yan (2014), section 3.1 (cascaded cross-channel parametric pooling)",
    method="Sum, mean and difference of channels are constructed as one 1x1, the maximum of two channels as two 1x1s "
    "with ReLU: max(a, b) = relu(a - b) + relu(b) - relu(-b). The maximum is also learned from random pixels.",
    overturn="A weighted sum or a maximum of channels that the construction misses.",
    checks=(
        Check("one 1x1 = sum, mean, difference of channels", linear_pools),
        Check("two 1x1s with ReLU = the maximum of two channels", maximum),
        Check("two 1x1s learn the maximum to an rms error of 0.05 on new pixels", learned, bound=0.05, cases=20),
    ),
)
