"""From raw pixels to what a network takes: a chain of fitted steps that travels inside the model file.

Pixels are uint8 and become floats from 0 to 1; then each step of the chain, in order, each (N, C, H, W) -> the same:

- scale         nothing more
- mean          minus the mean of each channel over the training images
- standardize   the same, divided by each channel's standard deviation
- gcn           global contrast normalisation: each image minus its own mean, scaled to the norm 55
- zca           whitening: minus the mean image, times (covariance + 0.1 I)^(-1/2), fitted on the training images
- lcn           local contrast normalisation: each pixel against its 9x9 neighbourhood, a channel at a time

The paper takes gcn, zca for CIFAR (as Goodfellow et al., Maxout Networks, 2013), lcn for SVHN and mean for MNIST.
"""

from __future__ import annotations

from mlpconv.preprocessing.chain import Preprocessing
from mlpconv.preprocessing.steps import STEPS

__all__ = ["STEPS", "Preprocessing"]
