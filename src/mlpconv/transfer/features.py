"""Pooled features of a network: what its classifier takes, averaged over the image, without a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlpconv.data.converted import ConvertedImages
from mlpconv.data.shard_images import ShardImages
from mlpconv.inference.dispatch import trusted_engine
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing
from mlpconv.training.step import autocast
from mlpconv.transfer.cache import FeatureCache, hash_of

__all__ = ["extract", "feature_precision", "frozen_hash", "outputs"]

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


def extract(
    network: Network,
    preprocessing: Preprocessing,
    images: NDArray[np.uint8],
    *,
    flip: bool = False,
    precision: str = "fp32",
    logits: bool = False,
    cache: FeatureCache | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Return the features (N, D) of images (N, C, H, W): the spatial mean of the feature maps, in eval mode.

    `flip` flips the images horizontally; `precision` is "fp32" or "bf16"; `logits` returns the network's logits (N, K)
    instead. A `cache` returns what is stored for the same images and weights. `progress` receives the number of images
    done.
    """

    def pooled(x: Tensor) -> Tensor:
        return network.forward_features(x).float().mean((2, 3))

    def compute() -> Tensor:
        plain = network if logits else pooled
        with _evaluating(network, preprocessing) as device:
            few = preprocessing(torch.from_numpy(np.array(images[:FEW])).to(device))
            engine = trusted_engine(network, few, precision, plain, features=not logits)
        forward, cast = (plain, precision) if engine is None else (engine, "fp32")  # the engine casts by itself
        return outputs(network, preprocessing, images, forward, flip=flip, precision=cast, progress=progress)

    if cache is None:
        return compute()
    described = [f"flip {flip}", precision, METHOD, *(["logits"] if logits else [])]
    return cache.get(
        hash_of([frozen_hash(network, preprocessing, whole=logits), *identity(images), *described]), compute
    )


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
    batch = max(1, min(MAX_BATCH, BATCH_VALUES // images[:1].size)) if len(images) else 1
    batch = batch // FEW * FEW or batch
    parts = []
    with _evaluating(network, preprocessing) as device, autocast(precision, device):
        for start in range(0, len(images), batch):
            pixels = torch.from_numpy(np.array(images[start : start + batch])).to(device)
            x = preprocessing(pixels.flip(3) if flip else pixels)
            parts.append(forward(x.contiguous(memory_format=torch.channels_last)).float().cpu())
            if progress is not None:
                progress(min(start + batch, len(images)))
    return torch.cat(parts).clone()


@contextmanager
def _evaluating(network: Network, preprocessing: Preprocessing) -> Iterator[torch.device]:
    """Yield the device, in eval mode and without gradients; restore the training mode afterwards."""
    training = [module for module in (*network.modules(), *preprocessing.modules()) if module.training]
    network.eval()
    preprocessing.eval()
    try:
        with torch.inference_mode():
            yield next(network.parameters()).device
    finally:
        for module in training:
            module.training = True


def feature_precision(precision: str, device: torch.device) -> str:
    """Return the compute dtype of features: for "auto", bf16 on a device with bfloat16 units, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    units = (getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16" if any(units) else "fp32"
