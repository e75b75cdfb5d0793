"""Interval arithmetic of receptive fields, and tracing an image through operations with real values."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mlpconv.receptive_field import Axis, Field, Grid, field_of
from mlpconv.receptive_field.field import UNMARKED, grid_of_moved, image_axis, join_grids, mark_cells

ONE, HALF = Fraction(1), Fraction(1, 2)


def numbers_of(grid: Grid, shape: torch.Size) -> Tensor:
    """Return the position of every element in pixels, broadcast to the shape."""
    wide = [1] * len(shape)
    wide[grid.dim] = shape[grid.dim]
    places = grid.cell_indices(shape[grid.dim]) * float(grid.jump) + float(grid.start)
    return places.reshape(wide).expand(shape)


def follow(grid: Grid, shape: torch.Size, move: Callable[[Tensor, float], Tensor]) -> Grid | None:
    """Return the grid after `move(values, fill)` rearranged the elements of a tensor of this shape."""
    return grid_of_moved(grid, shape, move(mark_cells(grid, shape), UNMARKED))


SHAPES = ((5, 7, 3), (7, 5, 3), (35, 3), (5, 21), (105,), (3, 35), (7, 15), (3, 5, 7), (1, 5, 7, 3), (5, 1, 7, 3))


@settings(deadline=None, max_examples=150)
@given(
    turns=st.lists(st.tuples(st.sampled_from(SHAPES), st.randoms(use_true_random=False)), min_size=1, max_size=3),
    dim=st.sampled_from((-3, -2, -1)),
)
def test_the_grid_follows_transposes_and_reshapes(turns: list, dim: int) -> None:
    """After transposes and reshapes of a (5, 7, 3), the grid must give each element its own position."""
    start = torch.Size((5, 7, 3))
    orders = [(shape, random.sample(range(len(shape)), len(shape))) for shape, random in turns]

    def move(values: Tensor, fill: float) -> Tensor:
        for shape, order in orders:
            values = values.reshape(shape).permute(order)
        return values

    grid = Grid(dim, Fraction(3, 2), Fraction(-1), Fraction(5))
    found = follow(grid, start, move)
    truth = move(numbers_of(grid, start), math.nan)
    if found is None:  # then the cells lie along no single dimension
        assert all(not along(truth, other) for other in range(truth.dim()))
    else:
        assert torch.equal(numbers_of(found, truth.shape), truth)
        assert found.size == 5


def along(values: Tensor, dim: int) -> bool:
    """Return whether the values are evenly spaced along this dimension, and constant along the others."""
    line = values.movedim(dim, 0).reshape(values.shape[dim], -1)
    steps = line[:, 0].diff()
    return bool((line == line[:, :1]).all()) and len(steps) > 0 and bool((steps == steps[0]).all() and steps[0] != 0)


def test_flattened_rows_and_columns_can_be_unflattened() -> None:
    rows, columns = Grid(-3, ONE, Fraction(0), ONE), Grid(-2, ONE, Fraction(0), ONE)
    shape = torch.Size((5, 7, 3))
    flat = [follow(grid, shape, lambda values, _: values.reshape(35, 3)) for grid in (rows, columns)]
    assert flat == [Grid(-2, ONE, Fraction(0), ONE, 5, 7), Grid(-2, ONE, Fraction(0), ONE, 7, 1)]
    again = [follow(grid, torch.Size((35, 3)), lambda values, _: values.reshape(5, 7, 3)) for grid in flat if grid]
    assert again == [rows, columns]
    assert join_grids(flat) is None  # same dimension, different grids


def test_repeated_elements_have_no_grid() -> None:
    grid = Grid(-1, ONE, Fraction(0), ONE)
    assert follow(grid, torch.Size((5,)), lambda values, _: values.repeat(2)) is None
    assert follow(grid, torch.Size((5,)), lambda values, _: values.repeat_interleave(2)) is None
    assert follow(grid, torch.Size((2, 5)), lambda values, _: torch.zeros_like(values)) is None


def test_cells_out_of_order_have_no_grid() -> None:
    grid, mixed = Grid(-1, ONE, Fraction(0), ONE), [0, 2, 1]
    assert follow(grid, torch.Size((2, 3)), lambda values, _: values[:, mixed].reshape(6)) is None


def test_a_dimension_shared_with_channels_has_no_grid() -> None:
    """In a pixel shuffle, rows and columns each share a dimension with two channels, and 5 times 2 is also 10 rows."""
    shuffled = field_of(
        torch.zeros(1, 8, 5, 2), lambda x: x.view(1, 2, 2, 2, 5, 2).permute(0, 1, 4, 2, 5, 3).reshape(1, 2, 10, 4)
    )
    assert (axis(shuffled, 0).grid, axis(shuffled, 1).grid) == (None, None)
    flat = field_of(torch.zeros(1, 3, 5, 7), lambda x: x.flatten(1))
    assert (axis(flat, 0).grid, axis(flat, 1).grid) == (None, None)


def axis(field: Field | None, k: int) -> Axis:
    assert field is not None
    return field[k]


def test_an_image_sees_itself_and_a_constant_sees_nothing() -> None:
    image = torch.zeros(1, 2, 5, 7)
    assert axis(field_of(image, lambda x: x + 1), 1).grid == image_axis(4, -1, 7).grid
    assert field_of(image, lambda _: torch.ones(3)) is None
    assert field_of(image, torch.zeros_like) is None


def test_field_of_computes_real_values() -> None:
    """An index that depends on values is known here, unlike on meta tensors."""
    image = torch.arange(35.0).reshape(1, 1, 5, 7)

    def every_other(x: Tensor) -> Tensor:
        return x[..., (torch.arange(7) % 2 == 0).nonzero().flatten()]

    assert axis(field_of(image, every_other), 1).grid == Grid(-1, Fraction(2), Fraction(0), ONE)


@pytest.mark.parametrize("inference", [True, False])
def test_fields_are_the_same_in_inference_mode(inference: bool) -> None:
    layers = nn.Sequential(nn.Conv2d(2, 3, (3, 2), 2), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.AvgPool2d(2)).eval()
    with torch.inference_mode(inference):
        field = field_of(torch.zeros(1, 2, 11, 13), layers)
    assert axis(field, 0).grid == Grid(-2, Fraction(4), Fraction(2), Fraction(5))
    assert axis(field, 1).grid == Grid(-1, Fraction(4), HALF * 3, Fraction(4))


class Work(TorchDispatchMode):
    """Count the computed elements."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not made.is_meta and not func.is_view:
            self.elements += made.numel()
        return made


class Turning(nn.Module):
    """Transpose, flatten, split into heads, pad and merge feature maps."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.permute(0, 2, 3, 1).reshape(n, h * w, 2, c // 2).transpose(1, 2).contiguous()
        x = x.transpose(1, 2).reshape(n, h, w, c).permute(0, 3, 1, 2)
        return F.pad(x.roll((1, 2), (2, 3)).flip(3), (1, 2, 0, 1), "reflect")


def test_the_cost_of_tracing_does_not_grow_with_channels() -> None:
    counts = []
    for channels in (4, 400):
        image = torch.empty(1, channels, 7, 5, device="meta")
        with Work() as work:
            seen = field_of(image, Turning())
        counts.append(work.elements)
        assert seen is not None
        assert seen[0].hi.amax() == 6
    assert counts[0] == counts[1] > 0
