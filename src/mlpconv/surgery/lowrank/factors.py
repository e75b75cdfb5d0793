"""A convolution of lower rank: a 1x1 before it, a 1x1 after it, or both, and fewer channels in the middle.

Notation: a weight W (O, I, kh, kw), x the input channels of a pixel, y = W x + b the responses. The input side keeps
`s` of I directions, the output side `r` of O:

- 1x1 (I -> s), k x k (s -> O)
- k x k (I -> r), 1x1 (r -> O)
- 1x1 (I -> s), k x k (s -> r), 1x1 (r -> O)

A `Basis` says which directions come first. By weights they are singular vectors of the two unfoldings of W (Tucker-2,
Kim et al., arXiv 1511.06530). By activations they are those that lose least of the responses on data: on the output
side the principal components of y, its mean kept in the bias (Zhang et al., arXiv 1505.06798, section 3.1); on the
input side the singular vectors of W times the square root of the second moment of x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mlpconv.surgery.folding.linear_maps import uninitialised
from mlpconv.surgery.lowrank.moments import Moments

__all__ = [
    "Basis",
    "FactorizableLayer",
    "Side",
    "as_matrix",
    "basis_by_activations",
    "basis_by_weights",
    "factorize_layer",
    "is_1x1",
    "reconstruct",
]

FactorizableLayer = nn.Conv2d | nn.Linear
TINY = 1e-12
RIDGE = 1e-3
"""Variances below this share of the largest count as nothing."""


@dataclass(frozen=True)
class Side:
    """Directions of a layer's input or output channels, C of them, the most important first, in float64."""

    down: Tensor
    """(C, C): the first r rows take the channels to r numbers."""
    up: Tensor
    """(C, C): the first r columns take them back."""
    lost: Tensor
    """(C + 1,): share of the responses' variance (or the weights' energy) that is lost when the first r are kept."""
    mean: Tensor | None = None
    """(C,): what the channels are on average, where that stays out of the directions."""


@dataclass(frozen=True)
class Basis:
    """The directions of both sides of a layer; of a 1x1, of its output alone, which is enough for any rank."""

    out: Side
    into: Side | None


def is_1x1(layer: FactorizableLayer) -> bool:
    """Whether the layer is a 1x1 convolution, or linear."""
    return isinstance(layer, nn.Linear) or tuple(layer.kernel_size) == (1, 1)


def as_matrix(layer: FactorizableLayer) -> Tensor:
    """The weight as (O, I, taps) in float64 on the CPU."""
    weight = layer.weight.detach().cpu().double()
    return weight.reshape(*weight.shape[:2], -1)


def basis_by_weights(layer: FactorizableLayer) -> Basis:
    """Singular vectors of the layer's weight, without data."""
    weight = as_matrix(layer)
    out = _orthogonal(weight.flatten(1) @ weight.flatten(1).T)
    return Basis(out, None if is_1x1(layer) else _orthogonal(torch.einsum("oit,ojt->ij", weight, weight)))


def basis_by_activations(layer: FactorizableLayer, inputs: Moments | None, outputs: Moments) -> Basis:
    """Directions that lose least of the responses, from the moments of the layer's input and output channels.

    The moments of the input are not needed for a 1x1.
    """
    out = _orthogonal(outputs.covariance, outputs.mean)
    if is_1x1(layer) or inputs is None:
        return Basis(out, None)
    weight = as_matrix(layer)
    taps = torch.einsum("oit,ojt->ij", weight, weight)
    # The mean counts as a direction: a constant in its place would be wrong where the kernel sees the padding.
    root, inverse = _square_root(inputs.covariance + inputs.mean[:, None] * inputs.mean)
    # Neighbouring taps are taken as if they were not correlated: the error of one pixel's channels, added up.
    energy, vectors = _descending(root @ taps @ root)
    lost = _lost(energy, float((taps * inputs.covariance).sum()))
    return Basis(out, Side(vectors.T @ inverse, root @ vectors, lost))


def _orthogonal(gram: Tensor, mean: Tensor | None = None) -> Side:
    """The eigenvectors of a symmetric matrix, as directions."""
    energy, vectors = _descending(gram)
    return Side(vectors.T, vectors, _lost(energy, float(energy.sum())), mean)


def _descending(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the largest first, and eigenvectors as columns."""
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def _lost(energy: Tensor, whole: float) -> Tensor:
    """(C + 1,): the share of the whole energy that is left out when the first 0, 1, ... directions are kept."""
    left = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    return left / whole if whole > 0 else torch.zeros_like(left)


def _square_root(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root and its (pseudo-)inverse."""
    values, vectors = torch.linalg.eigh(covariance)
    roots = values.clamp_min(0).sqrt()
    alive = values > TINY * values.max().clamp_min(TINY)
    inverse = torch.where(alive, 1 / roots.clamp_min(TINY), torch.zeros_like(roots))
    return (vectors * roots) @ vectors.T, (vectors * inverse) @ vectors.T


@torch.no_grad()
def factorize_layer(layer: FactorizableLayer, basis: Basis, rank_in: int | None, rank_out: int | None) -> nn.Sequential:
    """The layer through `rank_in` directions of its input and `rank_out` of its output; None keeps a side whole.

    Of two or three layers, only the last has a bias. Device, dtype, mode, memory format and requires_grad of the
    weight are kept.
    """
    weight = as_matrix(layer)
    bias = torch.zeros(len(weight), dtype=torch.float64) if layer.bias is None else layer.bias.detach().cpu().double()
    parts: list[nn.Module] = []
    if rank_in is not None and basis.into is not None:
        # Orthonormal rows that span the same: the middle stays well scaled.
        rows, triangle = torch.linalg.qr(basis.into.down[:rank_in].T)
        parts.append(_point(layer, rows.T, None))
        weight = torch.einsum("oit,is->ost", weight, basis.into.up[:, :rank_in] @ triangle.T)
    mean = basis.out.mean
    biased = layer.bias is not None
    if rank_out is None:
        parts.append(_core(layer, weight, bias if biased else None))
    else:
        down, up = basis.out.down[:rank_out], basis.out.up[:, :rank_out]
        if mean is not None:
            bias = mean + up @ (down @ (bias - mean))
        parts.append(_core(layer, torch.einsum("ro,oit->rit", down, weight), None))
        parts.append(_point(layer, up, bias if biased or mean is not None else None))
    return nn.Sequential(*parts).train(layer.training)


def _point(layer: FactorizableLayer, matrix: Tensor, bias: Tensor | None) -> nn.Module:
    """A 1x1 convolution (or a linear layer, where `layer` is one) with this matrix (out, in)."""
    rows, columns = matrix.shape
    if isinstance(layer, nn.Linear):
        return _filled(
            uninitialised(nn.Linear, layer.weight, columns, rows, bias=bias is not None), layer, matrix, bias
        )
    made = uninitialised(nn.Conv2d, layer.weight, columns, rows, 1, bias=bias is not None)
    return _filled(made, layer, matrix[:, :, None, None], bias)


def _core(layer: FactorizableLayer, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """The layer itself with another weight (out, in, taps)."""
    if isinstance(layer, nn.Linear):
        return _point(layer, weight[:, :, 0], bias)
    made = uninitialised(
        nn.Conv2d,
        layer.weight,
        weight.shape[1],
        weight.shape[0],
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        bias=bias is not None,
        padding_mode=layer.padding_mode,
    )
    return _filled(made, layer, weight.reshape(*weight.shape[:2], *layer.kernel_size), bias)


def _filled(made: nn.Module, like: FactorizableLayer, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """The new layer with its numbers, in the layout of the old one and as trainable."""
    if like.weight.dim() == 4 and not like.weight.is_contiguous():
        made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    cast("Tensor", made.weight).copy_(weight)
    if bias is not None:
        cast("Tensor", made.bias).copy_(bias)
    return made.requires_grad_(like.weight.requires_grad)


@torch.no_grad()
def reconstruct(parts: nn.Sequential, moments: Moments, rank_out: int | None) -> nn.Sequential:
    """The parts, the last of them a layer with all outputs, followed by the linear map that comes nearest to a target.

    `moments` are those of what the parts make, crossed with the target's. A map of rank `rank_out` is one more 1x1;
    without it the last layer takes the map in. This is reduced-rank regression from what the layer now gets, errors of
    the layers before it included, to what it should make (Zhang et al., arXiv 1505.06798, section 3.4).
    """
    core = cast("FactorizableLayer", parts[-1])
    weight = as_matrix(core)
    bias = torch.zeros(len(weight), dtype=torch.float64) if core.bias is None else core.bias.detach().cpu().double()
    given, identity = moments.covariance, torch.eye(len(weight), dtype=torch.float64)
    # Where there is little data, a map near the identity is likelier than one near nothing.
    ridge = RIDGE * given.diagonal().mean().clamp_min(TINY) * identity
    nearest = identity + torch.linalg.solve(given + ridge, (moments.crossed - given).T).T
    if rank_out is None:
        bias = nearest @ bias + moments.other_mean - nearest @ moments.mean
        last = [_core(core, torch.einsum("pq,qit->pit", nearest, weight), bias)]
    else:
        up = _descending(nearest @ given @ nearest.T)[1][:, :rank_out]
        down = up.T @ nearest
        bias = up @ (down @ (bias - moments.mean)) + moments.other_mean
        last = [_core(core, torch.einsum("pq,qit->pit", down, weight), None), _point(core, up, bias)]
    return nn.Sequential(*list(parts)[:-1], *last).train(parts.training)
