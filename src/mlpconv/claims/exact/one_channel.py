"""Claim 4: with one input channel a 1x1 only rescales; with many it forms new features."""

from __future__ import annotations

import numpy as np
import torch

from mlpconv.claims.cases import apart, draw, integer, pointwise
from mlpconv.claims.schema import Check, Claim

__all__ = ["CLAIM"]


def rescales(rng: np.random.Generator) -> float:
    """Return the distance of each output map from a multiple of the only input map plus a constant."""
    x = draw(rng, 1, 1, integer(rng, 2, 13), integer(rng, 2, 13))
    conv = pointwise(rng, 1, integer(rng, 1, 17))
    scaled = conv.weight.flatten()[None, :, None, None] * x + conv.bias[None, :, None, None]  # type: ignore[index]
    return apart(conv(x), scaled)


def new_features(rng: np.random.Generator) -> float:
    """Compare the rank of F new maps of 32 channels with the largest possible, and that none is an input map."""
    x = draw(rng, 1, 32, integer(rng, 7, 13), integer(rng, 7, 13))
    filters = integer(rng, 1, 32)
    maps = pointwise(rng, 32, filters)(x)[0].flatten(1)
    centred = maps - maps.mean(1, keepdim=True)
    inputs = x[0].flatten(1) - x[0].flatten(1).mean(1, keepdim=True)
    cosines = torch.nn.functional.normalize(centred) @ torch.nn.functional.normalize(inputs).T
    copies = (cosines.abs() > 1 - 1e-9).any()
    return abs(int(torch.linalg.matrix_rank(centred)) - filters) + float(copies)


CLAIM = Claim(
    number=4,
    name="one-channel",
    title="One channel in: only a rescaling",
    words="On a 6 x 6 x 1 image a 1x1 convolution just multiplies by a number; on 6 x 6 x 32 it does something useful.",
    source="Ng, Deep Learning Specialization, 'Networks in Networks and 1x1 convolutions'",
    method="With one input channel every output map must be that channel times a number plus a constant. With 32 "
    "channels, F random filters must give F linearly independent maps, none of them a copy of an input.",
    overturn="An output of a one-channel 1x1 that is no rescaled copy of the input.",
    checks=(
        Check("one channel: every output is a x input + b", rescales),
        Check("32 channels: F filters give F independent maps, none a copy of an input", new_features, bound=0),
    ),
)
