"""Every padding mode has the size, stride and start of zero padding, and the pixels that gradients show."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.wrapped import Lambda
from support.zoo import Oracle, conv
from torch import Tensor, nn

from mlpconv.analysis import AxisField, profile

SIZE = (3, 23, 17)
MODES = ("reflect", "replicate", "circular")
PAD = (1, 2, 0, 2)


def padded(mode: str) -> nn.Module:
    """A padded convolution with different strides and dilations per axis."""
    made = conv(4, 4, (3, 2), (2, 1), (2, 1), (1, 2))
    made.padding_mode = mode
    made._reversed_padding_repeated_twice = [1, 1, 2, 2]
    return made


def byhand(_: Any, x: Tensor) -> Tensor:
    """Zero padding by writing into a larger tensor."""
    made = x.new_zeros(*x.shape[:2], x.shape[2] + 2, x.shape[3] + 3)
    made[:, :, :-2, 1:-2] = x
    return made


def in_one(x: Tensor, mode: str) -> Tensor:
    """Padding of three dimensions."""
    return F.pad(x[:, None], (*PAD, 0, 0), mode)[:, 0]


KINDS: dict[str, tuple[nn.Module, nn.Module]] = {
    **{f"convolution, {mode}": (padded(mode), padded("zeros")) for mode in MODES},
    **{f"F.pad, {mode}": (Lambda(lambda _, x, m=mode: F.pad(x, PAD, m)), nn.ZeroPad2d(PAD)) for mode in MODES},
    **{f"named, {m}": (Lambda(lambda _, x, m=m: F.pad(x, pad=PAD, mode=m)), nn.ZeroPad2d(PAD)) for m in MODES},
    **{f"3d, {mode}": (Lambda(lambda _, x, m=mode: in_one(x, m)), nn.ZeroPad2d(PAD)) for mode in MODES},
    "reflection layer": (nn.ReflectionPad2d(PAD), nn.ZeroPad2d(PAD)),
    "replication layer": (nn.ReplicationPad2d(PAD), nn.ZeroPad2d(PAD)),
    "circular layer": (nn.CircularPad2d(PAD), nn.ZeroPad2d(PAD)),
    "by hand": (Lambda(byhand), nn.ZeroPad2d(PAD)),
}  # fmt: skip


def fields_of(model: nn.Module) -> tuple[AxisField, AxisField]:
    found = profile(model, SIZE).field
    assert found is not None
    return found


@pytest.mark.parametrize(("pad", "zeros"), KINDS.values(), ids=KINDS.keys())
def test_the_grid_continues_beyond_the_border(pad: nn.Module, zeros: nn.Module) -> None:
    first, last = conv(3, 4, 3, 2), conv(4, 4, 3, 1)
    torch.manual_seed(3)
    rows, columns = fields_of(nn.Sequential(first, pad, last))
    assert [(a.size, a.jump, a.start) for a in (rows, columns)] == [
        (a.size, a.jump, a.start) for a in fields_of(nn.Sequential(first, zeros, last))
    ]
    oracle = Oracle(nn.Sequential(first, pad, last), SIZE)
    height, width = oracle.output.shape[2:]
    for i, j in itertools.product(
        {0, 1, height // 2, height - 2, height - 1}, {0, 1, width // 2, width - 2, width - 1}
    ):
        assert (rows.spans[i], columns.spans[j]) == oracle.spans(i, j)


@pytest.mark.parametrize("pad", [nn.ReflectionPad2d(PAD), nn.CircularPad2d(PAD), nn.ZeroPad2d(PAD)])
def test_the_row_of_a_padding_layer_has_its_size_and_field(pad: nn.Module) -> None:
    row = profile(nn.Sequential(conv(3, 4, 3, 2), pad), SIZE).rows[-1]
    assert row.shape == (4, 13, 11)
    assert [(a.size, a.jump, a.start) for a in row.field or ()] == [(3, 2, 1), (3, 2, -1)]


def halves(_: Any, x: Tensor) -> Tensor:
    """Concatenate the image with itself, side by side."""
    made = x.new_zeros(*x.shape[:3], 2 * x.shape[3])
    made[..., : x.shape[3]] = x
    made[..., x.shape[3] :] = x
    return made


def test_two_images_side_by_side_have_no_stride() -> None:
    rows, columns = fields_of(Lambda(halves))
    assert (rows.jump, columns.jump) == (1, None)
