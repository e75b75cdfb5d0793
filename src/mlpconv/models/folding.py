"""Fold batch norm into the convolutions of a network of this package, and change its configuration to norm=None.

In eval mode a batch norm is y = scale * x + shift per channel, with scale = weight / sqrt(running variance + eps) and
shift = bias - scale * running mean (Ioffe and Szegedy, arXiv 1502.03167, section 3.1).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from mlpconv.errors import UsageError
from mlpconv.layers import MLPConv
from mlpconv.models.base import Network
from mlpconv.models.blocks import NINConfig
from mlpconv.models.efficientnet_lite import EfficientNetLite
from mlpconv.models.googlenet import GoogLeNet
from mlpconv.models.googlenet_config import GoogLeNetConfig
from mlpconv.models.ranks import parts_of

__all__ = ["fold_norm", "norm_scale_and_shift"]

EXACT = 1e-10
"""Largest accepted difference of float64 logits, relative to the largest logit."""
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def fold_norm(model: Network) -> Network:
    """Fold batch norm into the convolutions: the same logits in eval mode, with `config.norm` None.

    `model` is not changed; device, dtype, memory format, mode and requires_grad are kept. A network without norm is
    copied. Before the result is returned, it is compared with `model` on a random image in float64.
    Raises UsageError for a norm with negative weights after a max-pool (`pool_first`), a norm without running
    statistics, and weights that are not finite.
    """
    folded = copy.deepcopy(model)
    if getattr(model.config, "norm", None) is None:
        return folded
    _fold_in_place(folded)
    reference = copy.deepcopy(model).cpu().double().eval()
    expected = _outputs(reference)
    _fold_in_place(reference)
    _check_equal(model.config.name, expected, _outputs(reference))
    return folded


@torch.no_grad()
def norm_scale_and_shift(norm: BatchNorm, name: str) -> tuple[Tensor, Tensor]:
    """Return scale and shift (C,) of a batch norm in eval mode, in float64 on its device (float32 on mps).

    Raises UsageError, naming the norm, if it has no running statistics or they are not finite.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise UsageError(
            f"{name} keeps no running statistics (track_running_stats=False): its scale depends on the batch and "
            "cannot be folded. Train it with running statistics."
        )
    dtype = torch.float32 if norm.running_mean.device.type == "mps" else torch.float64
    scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.to(dtype)
    shift = -scale * norm.running_mean.to(dtype)
    if norm.bias is not None:
        shift = shift + norm.bias.to(dtype)
    if not bool(torch.isfinite(scale).all() and torch.isfinite(shift).all()):
        raise UsageError(f"{name} has NaN, infinite or negative statistics or weights: retrain the network.")
    return scale, shift


def _fold_in_place(model: Network) -> None:
    """Fold every norm of the network into its convolution, in place."""
    if isinstance(model, EfficientNetLite):
        _fold_pairs(model)
        return
    for path, block in model.named_modules():
        if not isinstance(block, MLPConv):
            continue
        for index, norm in enumerate(block.norms):
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            name = f"{path}.norms.{index}"
            scale, shift = norm_scale_and_shift(norm, name)
            if block.pool is not None and block.pool_at == "conv" and index == len(block.norms) - 1:
                _check_increasing(scale, name)
            _scale(parts_of(block.convs[index])[-1], scale, shift)
            block.norms[index] = nn.Identity().train(norm.training)
    if isinstance(model.config, GoogLeNetConfig):
        # response_norm=None would add local response normalisation to a network without norm.
        model.config = replace(model.config, norm=None, response_norm=model.config.response_norm or False)
    else:
        model.config = replace(cast("NINConfig", model.config), norm=None)


def _fold_pairs(model: EfficientNetLite) -> None:
    """Fold each batch norm of an EfficientNet-Lite into the convolution before it, which gets a bias."""
    for owner, conv_name, norm_name in model.norm_pairs():
        conv, norm = cast("nn.Conv2d", getattr(owner, conv_name)), getattr(owner, norm_name)
        scale, shift = norm_scale_and_shift(norm, norm_name)
        if conv.bias is None:
            conv.bias = nn.Parameter(torch.zeros_like(conv.weight[:, 0, 0, 0]))
        _scale(conv, scale, shift)
        setattr(owner, norm_name, nn.Identity().train(norm.training))
    model.config = replace(model.config, norm=None)


def _check_increasing(scale: Tensor, name: str) -> None:
    # s * max(x) = max(s * x) holds for s >= 0; for s < 0 it is a minimum, which a max-pool cannot compute.
    negative = (scale < 0).nonzero().flatten().tolist()
    if negative:
        raise UsageError(
            f"{name} follows a max-pool and has a negative weight in {len(negative)} of {len(scale)} channels "
            f"({', '.join(map(str, negative[:5]))}{', ...' if len(negative) > 5 else ''}), which turns the maximum "
            "into a minimum. Keep the norm, or train with pool_first=False."
        )


@torch.no_grad()
def _scale(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    """Fold y -> scale * y + shift into the convolution before it, in place."""
    conv.weight.copy_(conv.weight.to(scale.dtype) * scale[:, None, None, None])
    bias = cast("Tensor", conv.bias)
    bias.copy_(bias.to(scale.dtype) * scale + shift)


@torch.no_grad()
def _outputs(model: Network) -> list[Tensor]:
    """Return all logits for a random image, including those of auxiliary heads."""
    image = torch.randn(1, *model.input_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = model.outputs(image) if isinstance(model, GoogLeNet) else (model(image),)
    return [logits for logits in outputs if logits is not None]


def _check_equal(name: str, expected: list[Tensor], folded: list[Tensor]) -> None:
    for logits, folded_logits in zip(expected, folded, strict=True):
        difference = (logits - folded_logits).abs().max() / logits.abs().max().clamp_min(1e-300)
        if not bool(difference <= EXACT):
            raise UsageError(
                f"The folded network differs from {name} by {float(difference):.1e} of its largest logit in float64: "
                "its weights are too extreme, or not numbers."
            )
