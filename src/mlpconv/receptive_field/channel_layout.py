"""Along which dimension the channels of a tensor lie, told by the image's way through a network and by no class.

A convolution puts its channels second, a linear layer last. From there each element carries the number of its channel
through everything that only moves elements about, so that a permutation takes the channels along.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlpconv.receptive_field.call import Call
from mlpconv.receptive_field.field import Axis, Field
from mlpconv.receptive_field.following import Follower
from mlpconv.receptive_field.moving import moves
from mlpconv.receptive_field.rules import PRODUCTS, REDUCTIONS, fields_after, ranked

__all__ = ["ChannelFollower"]

UNKNOWN = Axis(torch.zeros(()), torch.zeros(()))
JOINS = frozenset({"cat", "glu", "stack"})
MAPS = (-3, -2, -1)


class ChannelFollower(Follower):  # type: ignore[no-untyped-call]
    """Knows the channel of every element that is made from an image, and beside that its rows and columns."""

    def start(self, image: Tensor) -> None:
        """Follow this image (N, C, H, W)."""
        super().start(image)
        self.fields[image] = (_numbered(image.shape, -3), *self.fields[image])

    def fields_of(self, call: Call) -> tuple[list[Field | None], bool]:
        """The field of each output: channels, rows, columns."""
        fields, exact = fields_after(call, self.fields.get)
        if moves(call):
            return fields, exact
        return [
            None if field is None else (ranked(self._channels(call, out, field[0]), out.dim()), *field[1:])
            for out, field in zip(call.outputs, fields, strict=True)
        ], exact

    def dim(self, tensor: Tensor) -> int | None:
        """The dimension (negative) along which the channels of a tensor lie, and nothing else; None if not known."""
        field = self.fields.get(tensor)
        if field is None:
            return None
        found = _dim(field[0].lo, tensor.shape)
        grids = [axis.grid for axis in field[1:] if axis.grid is not None and axis.grid.cells is None]
        if found is None and len(grids) == 2:  # a single channel does not vary
            others = [dim for dim in MAPS if all(dim != grid.dim for grid in grids)]
            return others[0] if len(others) == 1 and tensor.shape[others[0]] == 1 else None
        return found

    def _channels(self, call: Call, out: Tensor, met: Axis) -> Axis:
        """The channels of one output; `met` are those that meet in its elements."""
        if call.name == "convolution":
            return _numbered(out.shape, 1 - out.dim())
        if call.name in PRODUCTS:
            return self._product(call, out)
        told = [
            (tensor.shape, field[0].lo)
            for tensor in call.inputs
            if (field := self.fields.get(tensor)) is not None and field[0].lo.numel() > 1
        ]
        if call.name in JOINS or (call.name in REDUCTIONS and len(call.inputs) == 1):
            pure = all(_dim(numbers, shape) is not None for shape, numbers in told)
            dims = _varying(met.lo)
            return _numbered(out.shape, dims[0]) if pure and len(dims) == 1 else met
        return _beside(out.shape, told)

    def _product(self, call: Call, out: Tensor) -> Axis:
        """A matrix product: channels that are not summed over stay, else it makes new ones."""
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


def _beside(shape: Sequence[int], told: Sequence[tuple[Sequence[int], Tensor]]) -> Axis:
    """The channels after a step that leaves elements at their places; `told` are shapes and channels of its inputs."""
    varying = {dim for _, numbers in told for dim in _varying(numbers)}
    if len(varying) == 1:
        (dim,) = varying
        known = [own for own, numbers in told if _dim(numbers, own) is not None]
        if known and -dim <= len(shape) and any(own[dim] == shape[dim] for own in known):
            return _numbered(shape, dim)
    # Groups of channels and channels in a group: an input that has both dimensions knows both.
    whole = [numbers for _, numbers in told if set(_varying(numbers)) == varying and _fits(numbers, shape)]
    return Axis(whole[0], whole[0]) if whole else UNKNOWN


def _numbered(shape: Sequence[int], dim: int) -> Axis:
    """Channels in order along a dimension."""
    wide = [1] * len(shape)
    wide[dim] = shape[dim]
    numbers = torch.arange(shape[dim], dtype=torch.float32).reshape(wide)
    return Axis(numbers, numbers)


def _varying(numbers: Tensor) -> list[int]:
    """The dimensions along which they differ."""
    return [dim for dim in range(-numbers.dim(), 0) if numbers.shape[dim] > 1]


def _dim(numbers: Tensor, shape: Sequence[int]) -> int | None:
    """The dimension along which channels lie, each once; None where they share it, or lie along several."""
    dims = _varying(numbers)
    alone = len(dims) == 1 and numbers.numel() == shape[dims[0]] == len(set(numbers.flatten().tolist()))
    return dims[0] if alone else None


def _fits(numbers: Tensor, shape: Sequence[int]) -> bool:
    """Whether they can be broadcast to this shape."""
    own = numbers.shape
    return len(own) <= len(shape) and all(own[dim] in (1, shape[dim]) for dim in range(-len(own), 0))
