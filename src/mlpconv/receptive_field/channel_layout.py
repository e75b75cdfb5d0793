"""Find the channel dimension of each tensor of a forward pass from the data flow, independently of module classes.

A convolution puts its channels second, a linear layer last. From there each element carries its channel number through
operations that only rearrange elements, so a permutation moves the channel dimension too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlpconv.receptive_field.call import Call
from mlpconv.receptive_field.field import Axis, Field
from mlpconv.receptive_field.following import Follower
from mlpconv.receptive_field.moving import moves
from mlpconv.receptive_field.rules import PRODUCTS, REDUCTIONS, fields_after, pad_rank

__all__ = ["ChannelFollower"]

UNKNOWN = Axis(torch.zeros(()), torch.zeros(()))
JOINS = frozenset({"cat", "glu", "stack"})
MAPS = (-3, -2, -1)


class ChannelFollower(Follower):
    """Track the channel of every element computed from an image, in addition to its rows and columns."""

    def start(self, image: Tensor) -> None:
        """Track this image (N, C, H, W)."""
        super().start(image)
        self.fields[image] = (_numbered(image.shape, -3), *self.fields[image])

    def fields_of(self, call: Call) -> tuple[list[Field | None], bool]:
        """Return the field of each output (channels, rows, columns), and whether it is exact."""
        fields, exact = fields_after(call, self.fields.get)
        if moves(call):
            return fields, exact
        return [
            None if field is None else (pad_rank(self._channels(call, out, field[0]), out.dim()), *field[1:])
            for out, field in zip(call.outputs, fields, strict=True)
        ], exact

    def dim(self, tensor: Tensor) -> int | None:
        """Return the dimension (negative) that holds the channels of a tensor and nothing else; None if unknown."""
        field = self.fields.get(tensor)
        if field is None:
            return None
        channel_dim = _dim(field[0].lo, tensor.shape)
        grids = [axis.grid for axis in field[1:] if axis.grid is not None and axis.grid.cells is None]
        if channel_dim is None and len(grids) == 2:  # a single channel has no numbers that vary
            rest = [dim for dim in MAPS if all(dim != grid.dim for grid in grids)]
            return rest[0] if len(rest) == 1 and tensor.shape[rest[0]] == 1 else None
        return channel_dim

    def _channels(self, call: Call, out: Tensor, merged: Axis) -> Axis:
        """Return the channels of one output; `merged` are the input channels that its elements combine."""
        if call.name == "convolution":
            return _numbered(out.shape, 1 - out.dim())
        if call.name in PRODUCTS:
            return self._product(call, out)
        sources = [
            (tensor.shape, field[0].lo)
            for tensor in call.inputs
            if (field := self.fields.get(tensor)) is not None and field[0].lo.numel() > 1
        ]
        if call.name in JOINS or (call.name in REDUCTIONS and len(call.inputs) == 1):
            pure = all(_dim(numbers, shape) is not None for shape, numbers in sources)
            dims = _varying(merged.lo)
            return _numbered(out.shape, dims[0]) if pure and len(dims) == 1 else merged
        return _pointwise(out.shape, sources)

    def _product(self, call: Call, out: Tensor) -> Axis:
        """Return the channels after a matrix product: those not summed over stay, else it creates new ones."""
        sides = PRODUCTS[call.name]
        fields = [self.fields.get(call[side]) for side in sides]
        kept = [
            field[0].lo
            for field, summed in zip(fields, (-1, -2), strict=True)
            if field is not None and _varying(field[0].lo) and summed not in _varying(field[0].lo)
        ]
        if kept:
            return Axis(kept[-1], kept[-1])
        if None in fields:
            return _numbered(out.shape, -1 if fields[1] is None else -2)
        return UNKNOWN


def _pointwise(shape: Sequence[int], sources: Sequence[tuple[Sequence[int], Tensor]]) -> Axis:
    """Return the channels after a pointwise operation; `sources` are shapes and channels of its inputs."""
    varying = {dim for _, numbers in sources for dim in _varying(numbers)}
    if len(varying) == 1:
        (dim,) = varying
        known = [own for own, numbers in sources if _dim(numbers, own) is not None]
        if known and -dim <= len(shape) and any(own[dim] == shape[dim] for own in known):
            return _numbered(shape, dim)
    # Channels split over two dimensions (groups, channels per group): an input that varies along both has all numbers.
    complete = [numbers for _, numbers in sources if set(_varying(numbers)) == varying and _fits(numbers, shape)]
    return Axis(complete[0], complete[0]) if complete else UNKNOWN


def _numbered(shape: Sequence[int], dim: int) -> Axis:
    """Return channels numbered in order along a dimension."""
    wide = [1] * len(shape)
    wide[dim] = shape[dim]
    numbers = torch.arange(shape[dim], dtype=torch.float32).reshape(wide)
    return Axis(numbers, numbers)


def _varying(numbers: Tensor) -> list[int]:
    """Return the dimensions along which the numbers differ."""
    return [dim for dim in range(-numbers.dim(), 0) if numbers.shape[dim] > 1]


def _dim(numbers: Tensor, shape: Sequence[int]) -> int | None:
    """Return the dimension that holds each channel once; None if channels repeat or span several dimensions."""
    dims = _varying(numbers)
    unique = len(dims) == 1 and numbers.numel() == shape[dims[0]] == len(set(numbers.flatten().tolist()))
    return dims[0] if unique else None


def _fits(numbers: Tensor, shape: Sequence[int]) -> bool:
    """Return whether the numbers can be broadcast to this shape."""
    own = numbers.shape
    return len(own) <= len(shape) and all(own[dim] in (1, shape[dim]) for dim in range(-len(own), 0))
