"""Pooled features of a network: what its classifier takes, averaged over the image, without a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlpconv.data.converted import ConvertedImages
from mlpconv.data.shard_images import ShardImages
from mlpconv.inference.dispatch import trusted_engine
from mlpconv.inference.engine import Engine
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing
from mlpconv.training.step import autocast
from mlpconv.transfer.cache import FeatureCache, hash_of

__all__ = ["FastForward", "extract", "feature_precision", "frozen_hash", "outputs"]

MAX_BATCH, BATCH_VALUES = 48, 1 << 21
"""Images at a time, and the most values in them: large images would need gigabytes."""
FEW = 8
"""An engine runs this many at a time, so batches are multiples of it; of so many images it is tried first."""
METHOD = "fused"
"""How features are computed: part of the key of the cache, because another way rounds differently."""


def frozen_hash(network: Network, preprocessing: Preprocessing, *, whole: bool = False) -> str:
    """Return the SHA-256 of what features depend on: architecture, preprocessing, all weights but the classifier's.

    With `whole`, also of the classifier's weights, on which logits depend.
    """
    classifier = set() if whole else {id(parameter) for parameter in network.last_layer.parameters()}
    state = preprocessing.state_dict(prefix="preprocessing.")
    for name, tensor in network.state_dict(prefix="model.", keep_vars=True).items():
        if id(tensor) not in classifier:  # new in each run
            state[name] = tensor
    described = (str(network.config.to_dict()), str(preprocessing.config()))
    return hash_of([*described, *(part for name, tensor in sorted(state.items()) for part in (name, tensor))])


class FastForward:
    """The spatial means (N, D) of a network's features, or its logits (N, K), by an engine if there is one.

    The engine is compiled for the first images that it gets. For use in eval mode and without gradients.
    """

    def __init__(self, network: Network, precision: str, *, logits: bool = False) -> None:
        self.network, self.precision, self.logits = network, precision, logits
        self.engine: Engine | None = None
        self.tried = False

    def __call__(self, x: Tensor) -> Tensor:
        """Return features or logits of preprocessed images (N, C, H, W)."""
        if not self.tried:
            self.engine = trusted_engine(self.network, x[:FEW], self.precision, self.plain, features=not self.logits)
            self.tried = True
        if self.engine is None:
            return self.plain(x)
        with torch.autocast(x.device.type, enabled=False):  # the engine casts by itself
            return self.engine(x)

    def plain(self, x: Tensor) -> Tensor:
        """Return the same by the network itself."""
        result: Tensor = self.network(x) if self.logits else self.network.forward_features(x).float().mean((2, 3))
        return result


def extract(
    forward: FastForward,
    preprocessing: Preprocessing,
    images: NDArray[np.uint8],
    *,
    flip: bool = False,
    cache: FeatureCache | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Return the features (N, D), or logits (N, K), of images (N, C, H, W) in eval mode.

    `flip` flips the images horizontally. A `cache` returns what is stored for the same images and weights. `progress`
    receives the number of images done.
    """

    def compute() -> Tensor:
        network, precision = forward.network, forward.precision
        return outputs(network, preprocessing, images, forward, flip=flip, precision=precision, progress=progress)

    if cache is None:
        return compute()
    weights = frozen_hash(forward.network, preprocessing, whole=forward.logits)
    described = [f"flip {flip}", forward.precision, METHOD, *(["logits"] if forward.logits else [])]
    return cache.get(hash_of([weights, *identity(images), *described]), compute)


def identity(images: object) -> list[str | NDArray[Any]]:
    """Return what tells images (N, C, H, W) from others: their pixels, or what these are read from."""
    if isinstance(images, ConvertedImages):
        return [f"{images.shape} {images.decode_options}", *identity(images.source)]
    if isinstance(images, ShardImages):
        return [f"{images.shape} {images.decode_options}", images.places.digests]
    return [np.asarray(images)]


def outputs(
    network: Network,
    preprocessing: Preprocessing,
    images: NDArray[np.uint8],
    forward: Callable[[Tensor], Tensor],
    *,
    flip: bool = False,
    precision: str = "fp32",
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Return `forward` of the preprocessed images (N, C, H, W), on the CPU, in eval mode and without gradients."""
    device = next(network.parameters()).device
    training = [module for module in (*network.modules(), *preprocessing.modules()) if module.training]
    network.eval()
    preprocessing.eval()
    batch = max(1, min(MAX_BATCH, BATCH_VALUES // images[:1].size)) if len(images) else 1
    batch = batch // FEW * FEW or batch
    parts = []
    try:
        with torch.inference_mode(), autocast(precision, device):
            for start in range(0, len(images), batch):
                pixels = torch.from_numpy(np.array(images[start : start + batch])).to(device)
                x = preprocessing(pixels.flip(3) if flip else pixels)
                parts.append(forward(x.contiguous(memory_format=torch.channels_last)).float().cpu())
                if progress is not None:
                    progress(min(start + batch, len(images)))
    finally:
        for module in training:
            module.training = True
    return torch.cat(parts).clone()


def feature_precision(precision: str, device: torch.device) -> str:
    """Return the compute dtype of features: for "auto", bf16 on a device with bfloat16 units, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    units = (getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16" if any(units) else "fp32"
