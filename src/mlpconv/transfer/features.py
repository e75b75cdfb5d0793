"""Pooled features of a network: what its classifier takes, averaged over the image, without a gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing
from mlpconv.transfer.cache import FeatureCache, hash_of

__all__ = ["extract", "frozen_hash"]

BATCH = 50


def frozen_hash(network: Network, preprocessing: Preprocessing) -> str:
    """Return the SHA-256 of what features depend on: architecture, preprocessing, all weights but the classifier's."""
    classifier = {id(parameter) for parameter in network.last_layer.parameters()}
    state = preprocessing.state_dict(prefix="preprocessing.")
    for name, tensor in network.state_dict(prefix="model.", keep_vars=True).items():
        if id(tensor) not in classifier:  # new in each run
            state[name] = tensor
    described = (str(network.config.to_dict()), str(preprocessing.config()))
    return hash_of([*described, *(part for name, tensor in sorted(state.items()) for part in (name, tensor))])


def extract(
    network: Network,
    preprocessing: Preprocessing,
    images: NDArray[np.uint8],
    *,
    flip: bool = False,
    precision: str = "fp32",
    cache: FeatureCache | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Return the features (N, D) of images (N, C, H, W): the spatial mean of the feature maps, in eval mode.

    `flip` flips the images horizontally; `precision` is "fp32" or "bf16". A `cache` returns the stored
    features of the same images and weights. `progress` receives the number of images done.
    """
    if cache is None:
        return _computed(network, preprocessing, images, flip, precision, progress)
    key = hash_of([frozen_hash(network, preprocessing), images, f"flip {flip}", precision])
    return cache.get(key, lambda: _computed(network, preprocessing, images, flip, precision, progress))


def _computed(
    network: Network,
    preprocessing: Preprocessing,
    images: NDArray[np.uint8],
    flip: bool,
    precision: str,
    progress: Callable[[int], None] | None,
) -> Tensor:
    device = next(network.parameters()).device
    training = [module for module in (*network.modules(), *preprocessing.modules()) if module.training]
    network.eval()
    preprocessing.eval()
    parts = []
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            for start in range(0, len(images), BATCH):
                pixels = torch.from_numpy(np.array(images[start : start + BATCH])).to(device)
                x = preprocessing(pixels.flip(3) if flip else pixels)
                maps = network.forward_features(x.contiguous(memory_format=torch.channels_last))
                parts.append(maps.float().mean((2, 3)).cpu())
                if progress is not None:
                    progress(min(start + BATCH, len(images)))
    finally:
        for module in training:
            module.training = True
    return torch.cat(parts).clone()
