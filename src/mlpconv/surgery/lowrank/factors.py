"""Factorize a convolution: a 1x1 before it, a 1x1 after it, or both, with fewer channels in between.

Notation: a weight W (O, I, kh, kw), x the input channels of a pixel, y = W x + b the output. The input side keeps `s`
of I directions, the output side `r` of O:

- 1x1 (I -> s), k x k (s -> O)
- k x k (I -> r), 1x1 (r -> O)
- 1x1 (I -> s), k x k (s -> r), 1x1 (r -> O)

A `Basis` orders the directions. By weights they are the singular vectors of the two unfoldings of W (Tucker-2, Kim et
al., arXiv 1511.06530). By activations they are those that lose least of the output variance on data: on the output side
the principal components of y, with its mean in the bias (Zhang et al., arXiv 1505.06798, section 3.1); on the input
side the singular vectors of W times the square root of the second moment of x.
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
"""Weight of the ridge regression, as a fraction of the mean variance of the outputs."""


@dataclass(frozen=True)
class Side:
    """Directions of a layer's input or output channels, C of them, the most important first, in float64."""

    down: Tensor
    """(C, C): the first r rows project the channels to r values."""
    up: Tensor
    """(C, C): the first r columns project them back."""
    lost: Tensor
    """(C + 1,): fraction of the output variance (or the weight's energy) lost if the first r directions are kept."""
    mean: Tensor | None = None
    """(C,): the mean of the channels, if the directions are those of the centred channels."""


@dataclass(frozen=True)
class Basis:
    """The directions of both sides of a layer; of a 1x1 only the output side, which suffices for any rank."""

    out: Side
    into: Side | None


def is_1x1(layer: FactorizableLayer) -> bool:
    """Return whether the layer is a 1x1 convolution or a linear layer."""
    return isinstance(layer, nn.Linear) or tuple(layer.kernel_size) == (1, 1)


def as_matrix(layer: FactorizableLayer) -> Tensor:
    """Return the weight as (O, I, taps) in float64 on the CPU."""
    weight = layer.weight.detach().cpu().double()
    return weight.reshape(*weight.shape[:2], -1)


def basis_by_weights(layer: FactorizableLayer) -> Basis:
    """Return the singular vectors of the layer's weight; needs no data."""
    weight = as_matrix(layer)
    out = _orthogonal(weight.flatten(1) @ weight.flatten(1).T)
    return Basis(out, None if is_1x1(layer) else _orthogonal(torch.einsum("oit,ojt->ij", weight, weight)))


def basis_by_activations(layer: FactorizableLayer, inputs: Moments | None, outputs: Moments) -> Basis:
    """Return the directions that lose least of the output variance, from the moments of the input and output channels.

    A 1x1 needs no moments of the input.
    """
    out = _orthogonal(outputs.covariance, outputs.mean)
    if is_1x1(layer) or inputs is None:
        return Basis(out, None)
    weight = as_matrix(layer)
    taps = torch.einsum("oit,ojt->ij", weight, weight)
    # The mean counts as a direction: a constant in its place would be wrong at the zero padding of the kernel.
    root, inverse = _square_root(inputs.covariance + inputs.mean[:, None] * inputs.mean)
    # Assume uncorrelated taps, and add up the errors of the single pixels.
    energy, vectors = _descending(root @ taps @ root)
    lost = _lost(energy, float((taps * inputs.covariance).sum()))
    return Basis(out, Side(vectors.T @ inverse, root @ vectors, lost))


def _orthogonal(gram: Tensor, mean: Tensor | None = None) -> Side:
    """Return the eigenvectors of a symmetric matrix as directions."""
    energy, vectors = _descending(gram)
    return Side(vectors.T, vectors, _lost(energy, float(energy.sum())), mean)


def _descending(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues, largest first, and the eigenvectors as columns."""
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def _lost(energy: Tensor, total: float) -> Tensor:
    """Return (C + 1,): the fraction of the total energy lost if the first 0, 1, ... directions are kept."""
    rest = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    return rest / total if total > 0 else torch.zeros_like(rest)


def _square_root(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric square root and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(covariance)
    roots = values.clamp_min(0).sqrt()
    nonzero = values > TINY * values.max().clamp_min(TINY)
    inverse = torch.where(nonzero, 1 / roots.clamp_min(TINY), torch.zeros_like(roots))
    return (vectors * roots) @ vectors.T, (vectors * inverse) @ vectors.T


@torch.no_grad()
def factorize_layer(layer: FactorizableLayer, basis: Basis, rank_in: int | None, rank_out: int | None) -> nn.Sequential:
    """Return the layer through `rank_in` directions of its input and `rank_out` of its output; None is full rank.

    Only the last of the two or three layers has a bias. Device, dtype, mode, memory format and requires_grad are those
    of the original weight.
    """
    weight = as_matrix(layer)
    bias = torch.zeros(len(weight), dtype=torch.float64) if layer.bias is None else layer.bias.detach().cpu().double()
    layers: list[nn.Module] = []
    if rank_in is not None and basis.into is not None:
        # Orthonormal rows of the same span keep the activations in between well scaled.
        rows, triangle = torch.linalg.qr(basis.into.down[:rank_in].T)
        layers.append(_pointwise(layer, rows.T, None))
        weight = torch.einsum("oit,is->ost", weight, basis.into.up[:, :rank_in] @ triangle.T)
    mean = basis.out.mean
    if rank_out is None:
        layers.append(_core(layer, weight, bias if layer.bias is not None else None))
    else:
        down, up = basis.out.down[:rank_out], basis.out.up[:, :rank_out]
        if mean is not None:
            bias = mean + up @ (down @ (bias - mean))
        layers.append(_core(layer, torch.einsum("ro,oit->rit", down, weight), None))
        layers.append(_pointwise(layer, up, bias if layer.bias is not None or mean is not None else None))
    return nn.Sequential(*layers).train(layer.training)


def _pointwise(layer: FactorizableLayer, matrix: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a 1x1 convolution (for a linear `layer` a linear layer) with the matrix (out, in) as its weight."""
    rows, columns = matrix.shape
    if isinstance(layer, nn.Linear):
        linear = uninitialised(nn.Linear, layer.weight, columns, rows, bias=bias is not None)
        return _fill(linear, layer, matrix, bias)
    conv = uninitialised(nn.Conv2d, layer.weight, columns, rows, 1, bias=bias is not None)
    return _fill(conv, layer, matrix[:, :, None, None], bias)


def _core(layer: FactorizableLayer, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return the layer with another weight (out, in, taps)."""
    if isinstance(layer, nn.Linear):
        return _pointwise(layer, weight[:, :, 0], bias)
    conv = uninitialised(
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
    return _fill(conv, layer, weight.reshape(*weight.shape[:2], *layer.kernel_size), bias)


def _fill(layer: nn.Module, like: FactorizableLayer, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Copy weight and bias into a layer, with the memory format and requires_grad of `like`."""
    if like.weight.dim() == 4 and not like.weight.is_contiguous():
        layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    cast("Tensor", layer.weight).copy_(weight)
    if bias is not None:
        cast("Tensor", layer.bias).copy_(bias)
    return layer.requires_grad_(like.weight.requires_grad)


@torch.no_grad()
def reconstruct(layers: nn.Sequential, moments: Moments, rank_out: int | None) -> nn.Sequential:
    """Return the layers with their output mapped linearly to the target's, by least squares.

    `moments` are those of the layers' output, crossed with the target's. A map of rank `rank_out` is another 1x1; a map
    of full rank is merged into the last layer. This is reduced-rank regression to the original output, given the errors
    of the factorized layers before this one (Zhang et al., arXiv 1505.06798, section 3.4).
    """
    core = cast("FactorizableLayer", layers[-1])
    weight = as_matrix(core)
    bias = torch.zeros(len(weight), dtype=torch.float64) if core.bias is None else core.bias.detach().cpu().double()
    covariance, identity = moments.covariance, torch.eye(len(weight), dtype=torch.float64)
    # With little data, shrink the map towards the identity, not towards 0.
    ridge = RIDGE * covariance.diagonal().mean().clamp_min(TINY) * identity
    matrix = identity + torch.linalg.solve(covariance + ridge, (moments.crossed - covariance).T).T
    if rank_out is None:
        bias = matrix @ bias + moments.other_mean - matrix @ moments.mean
        last = [_core(core, torch.einsum("pq,qit->pit", matrix, weight), bias)]
    else:
        up = _descending(matrix @ covariance @ matrix.T)[1][:, :rank_out]
        down = up.T @ matrix
        bias = up @ (down @ (bias - moments.mean)) + moments.other_mean
        last = [_core(core, torch.einsum("pq,qit->pit", down, weight), None), _pointwise(core, up, bias)]
    return nn.Sequential(*list(layers)[:-1], *last).train(layers.training)
