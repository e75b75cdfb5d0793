"""Preprocess raw pixels into network input with a chain of fitted steps that is stored in the model file.

Pixels are uint8 and are scaled to 0..1. Then each step of the chain maps (N, C, H, W) to the same shape:

- scale         no further step
- mean          subtract the mean of each channel over the training images
- standardize   subtract the mean and divide by the standard deviation of each channel
- gcn           global contrast normalisation: subtract each image's mean and scale it to norm 55
- zca           whitening: subtract the mean image and multiply by (covariance + 0.1 I)^(-1/2) of the training images
- lcn           local contrast normalisation: normalise each pixel by its 9x9 neighbourhood, per channel

The paper uses gcn and zca for CIFAR (as Goodfellow et al., Maxout Networks, 2013), lcn for SVHN and mean for MNIST.
"""

from __future__ import annotations

from mlpconv.preprocessing.chain import Preprocessing
from mlpconv.preprocessing.steps import STEPS

__all__ = ["STEPS", "Preprocessing"]
