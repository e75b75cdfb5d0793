"""Initialise the first layer as a whitening of image patches, which speeds up training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlpconv.errors import UsageError

__all__ = ["whiten"]

FLOOR = 0.01  # added to the eigenvalues, so that whitening does not amplify noise in directions of small variance


@torch.no_grad()
def whiten(layer: nn.Conv2d, images: Tensor) -> int:
    """Set filters to the whitening directions of patches of `images` (N, C, H, W), and to their negatives.

    Return the number of filters set; the others keep their weights (Page 2018; Jordan 2024, section 3.2). Raises
    UsageError for images smaller than the filters.
    """
    height, width = layer.kernel_size
    if images.shape[2] < height or images.shape[3] < width:
        raise UsageError(
            f"whiten=true needs images of at least {height}x{width} pixels, the kernel size of the first layer; these "
            f"have {images.shape[2]}x{images.shape[3]}: leave whiten out."
        )
    patches = F.unfold(images, (height, width), stride=(height, width)).transpose(1, 2).flatten(0, 1).double()
    patches -= patches.mean(0)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    pairs = min(len(values), layer.out_channels // 2)
    directions = (vectors / (values + FLOOR).sqrt())[:, -pairs:].T.flip(0)  # (pairs, C x k x k), largest variance first
    directions = directions.view(pairs, *layer.weight.shape[1:]).to(layer.weight)
    layer.weight[: 2 * pairs] = torch.cat([directions, -directions])
    return 2 * pairs
