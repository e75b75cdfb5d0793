"""Batch norm worked into the convolutions before it: the same network in fewer steps, with the plain configuration.

In eval mode a batch norm is y = scale * x + shift, one number of each a channel, with scale = weight / sqrt(running
variance + eps) and shift = bias - scale * running mean (Ioffe and Szegedy, arXiv 1502.03167, section 3.1).
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
"""Largest difference of float64 logits, as a share of the largest logit."""
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def fold_norm(model: Network) -> Network:
    """The same network without batch norm: `config.norm` is None, and the logits are those of `model` in eval mode.

    `model` stays as it is; device, dtype, memory format, mode and requires_grad are kept. Where there is no norm, a
    copy. Equality in float64 is checked on a random image before it is returned.
    Raises UsageError where it cannot be done: a norm of negative weight after a max-pool (`pool_first`), a norm without
    statistics, or numbers that are not finite.
    """
    folded = copy.deepcopy(model)
    if getattr(model.config, "norm", None) is None:
        return folded
    _without_norms(folded)
    precise = _precise(model)
    before = _outputs(precise)
    _without_norms(precise)
    _check_equal(model.config.name, before, _outputs(precise))
    return folded


@torch.no_grad()
def norm_scale_and_shift(norm: BatchNorm, name: str) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a batch norm in eval mode, in float64 on its device (float32 on mps).

    Raises UsageError, naming the norm, where it has no running statistics or they are no finite numbers.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise UsageError(
            f"{name} keeps no running statistics (track_running_stats=False): its scale changes with every batch and "
            "cannot be folded. Train it with running statistics."
        )
    kind = torch.float32 if norm.running_mean.device.type == "mps" else torch.float64
    scale = (norm.running_var.to(kind) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.to(kind)
    shift = -scale * norm.running_mean.to(kind)
    if norm.bias is not None:
        shift = shift + norm.bias.to(kind)
    if not bool(torch.isfinite(scale).all() and torch.isfinite(shift).all()):
        raise UsageError(f"{name} has NaN, infinite or negative statistics or weights: train the network anew.")
    return scale, shift


def _without_norms(model: Network) -> None:
    """Work every norm of the network into its convolution, in place."""
    if isinstance(model, EfficientNetLite):
        _fold_pairs(model)
        return
    for path, block in model.named_modules():
        if not isinstance(block, MLPConv):
            continue
        for place, norm in enumerate(block.norms):
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            name = f"{path}.norms.{place}"
            scale, shift = norm_scale_and_shift(norm, name)
            if block.pool is not None and block.pool_at == "conv" and place == len(block.norms) - 1:
                _check_rising(scale, name)
            _scale(parts_of(block.convs[place])[-1], scale, shift)
            block.norms[place] = nn.Identity().train(norm.training)
    if isinstance(model.config, GoogLeNetConfig):
        # Without norm it would have local response normalisation, as published.
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


def _check_rising(scale: Tensor, name: str) -> None:
    # s * max(x) = max(s * x) holds for s >= 0; for s < 0 it is a minimum, which no max-pool with a ReLU can make.
    falling = (scale < 0).nonzero().flatten().tolist()
    if falling:
        raise UsageError(
            f"{name} follows a max-pool and has a negative weight in {len(falling)} of {len(scale)} channels "
            f"({', '.join(map(str, falling[:5]))}{', ...' if len(falling) > 5 else ''}): it makes the maximum a "
            "minimum, and no plain network can do so. Keep the norm, or train with pool_first=False."
        )


@torch.no_grad()
def _scale(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    """In place: the convolution followed by x -> scale * x + shift."""
    conv.weight.copy_(conv.weight.to(scale.dtype) * scale[:, None, None, None])
    bias = cast("Tensor", conv.bias)
    bias.copy_(bias.to(scale.dtype) * scale + shift)


def _precise(model: Network) -> Network:
    """A copy in float64 on the CPU, in eval mode."""
    return copy.deepcopy(model).cpu().double().eval()


@torch.no_grad()
def _outputs(model: Network) -> list[Tensor]:
    """All logits of a random image, also those of auxiliary heads."""
    image = torch.randn(1, *model.input_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = model.outputs(image) if isinstance(model, GoogLeNet) else (model(image),)
    return [logits for logits in found if logits is not None]


def _check_equal(name: str, before: list[Tensor], after: list[Tensor]) -> None:
    for one, other in zip(before, after, strict=True):
        difference = (one - other).abs().max() / one.abs().max().clamp_min(1e-300)
        if not bool(difference <= EXACT):
            raise UsageError(
                f"The folded network differs from {name} by {float(difference):.1e} of its largest logit in float64: "
                "its weights are too extreme, or not numbers."
            )
