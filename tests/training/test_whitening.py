"""The whitened first layer against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mlpconv.errors import UsageError
from mlpconv.training.whitening import whiten


def pictures(n: int = 211, channels: int = 3, size: int = 15, seed: int = 0) -> torch.Tensor:
    """Return smooth random images with a mean: neighbouring pixels and channels are correlated."""
    noise = torch.randn(n, channels, size + 2, size + 2, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(noise, 3, 1) * 3 + noise.mean(1, keepdim=True)[:, :, 1:-1, 1:-1] + 0.5


def patches(images: torch.Tensor, kernel: int) -> np.ndarray:
    """Return all non-overlapping patches (M, C x k x k), by slicing."""
    size = images.shape[-1]
    places = [
        (row, column) for row in range(0, size - kernel + 1, kernel) for column in range(0, size - kernel + 1, kernel)
    ]
    cut = [images[:, :, row : row + kernel, column : column + kernel].flatten(1) for row, column in places]
    return torch.cat(cut).numpy().astype(np.float64)


@pytest.mark.parametrize(("channels", "kernel", "filters"), [(3, 3, 64), (1, 5, 64), (3, 5, 48), (3, 3, 7)])
def test_the_responses_of_a_whitened_layer_are_uncorrelated(channels: int, kernel: int, filters: int):
    images = pictures(channels=channels)
    layer = nn.Conv2d(channels, filters, kernel)
    before = layer.weight.detach().clone()
    count = whiten(layer, images)
    pairs = min(channels * kernel**2, filters // 2)
    assert count == 2 * pairs
    weights = layer.weight.detach().flatten(1).numpy().astype(np.float64)
    np.testing.assert_array_equal(weights[pairs:count], -weights[:pairs])
    assert torch.equal(layer.weight[count:], before[count:])

    data = patches(images, kernel)
    covariance = np.cov(weights[:pairs] @ data.T, bias=True)
    largest = np.sort(np.linalg.eigvalsh(np.cov(data.T, bias=True)))[::-1][:pairs]
    np.testing.assert_allclose(covariance, np.diag(largest / (largest + 0.01)), atol=1e-4)
    assert np.abs(np.diag(covariance) - 1).max() < 0.2  # all but the identity


def test_the_directions_of_largest_variance_come_first():
    layer = nn.Conv2d(3, 11, 5)
    whiten(layer, pictures())
    data = patches(pictures(), 5)
    weights = layer.weight.detach().flatten(1).numpy()[:5]
    directions = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    variances = (directions @ (data - data.mean(0)).T).var(1)
    assert (np.diff(variances) < 0).all()


def test_noise_is_not_amplified():
    images = pictures() * torch.tensor([1.0, 1e-4, 0.0])[:, None, None]
    layer = nn.Conv2d(3, 64, 3)
    whiten(layer, images)
    assert torch.isfinite(layer.weight).all()
    assert layer.weight.abs().max() <= 10.001  # 1 / sqrt(0.01)


def test_whitening_keeps_layout_and_bias():
    layer = nn.Conv2d(3, 64, 3).to(memory_format=torch.channels_last)
    bias = layer.bias.detach().clone()
    whiten(layer, pictures())
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.bias, bias)
    assert layer.weight.requires_grad


def test_images_smaller_than_the_filters_are_refused():
    with pytest.raises(UsageError, match=r"whiten=true needs images of at least 5x5 pixels.*3x7"):
        whiten(nn.Conv2d(1, 8, 5, padding=2), torch.zeros(2, 1, 3, 7))
