"""Positions of the cells of category maps, compared with gradients and with the paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mlpconv.models.registry import create_model
from mlpconv.receptive_field.map_grid import Box, MapAxis, MapGrid, trace_grid


class Chain(nn.Module):
    """Layers whose output is the category maps."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def category_maps(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Branches(nn.Module):
    """Two branches with different kernels, added and concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(1, 2, 5, stride=2, padding=2)
        self.narrow = nn.Conv2d(1, 2, 3, stride=2, padding=1)

    def category_maps(self, x: Tensor) -> Tensor:
        return torch.cat([self.narrow(x), self.narrow(x) + torch.relu(self.wide(x))], 1)


def influence(model: nn.Module, size: tuple[int, int, int], row: int, column: int) -> Box:
    """Return the pixels with a gradient to one cell, in a linear network with positive weights."""
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    image = torch.ones(1, *size, dtype=torch.float64, requires_grad=True)
    model.double().category_maps(image)[0, -1, row, column].backward()
    rows, columns = np.nonzero(image.grad.abs().sum(1)[0].numpy())
    return Box(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


WINDOW = st.tuples(
    st.sampled_from(["conv", "pool"]), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)
)


@settings(deadline=None, max_examples=60)
@given(layers=st.lists(WINDOW, min_size=1, max_size=4), height=st.integers(17, 31), width=st.integers(17, 31))
def test_the_grid_agrees_with_gradients(layers: list[tuple[Any, ...]], height: int, width: int) -> None:
    made: list[nn.Module] = []
    for kind, kernel, stride, padding, dilation in layers:
        if kind == "conv":
            made += [nn.Conv2d(1, 1, kernel, stride, padding, dilation), nn.BatchNorm2d(1), nn.ReLU(inplace=True)]
        else:
            made.append(nn.AvgPool2d(kernel, stride, min(padding, kernel // 2), ceil_mode=True))
    model = Chain(*made).eval()
    try:
        maps = model.category_maps(torch.zeros(1, 1, height, width))
    except RuntimeError:
        return  # the image is smaller than the kernel
    grid = trace_grid(model, (1, height, width))
    for row, column in ((0, 0), (maps.shape[2] - 1, maps.shape[3] - 1), (maps.shape[2] // 2, maps.shape[3] // 2)):
        try:
            expected = influence(model, (1, height, width), row, column)
        except ValueError:
            continue  # the cell lies in padding
        box = grid.field_box(row, column, (height, width))
        if (box.right - box.left, box.bottom - box.top) == (grid.columns.field, grid.rows.field):
            assert box == expected
        else:  # at the border, strides and dilations may step over the first pixel
            assert box.left <= expected.left < expected.right <= box.right
            assert box.top <= expected.top < expected.bottom <= box.bottom


def test_the_grid_covers_every_branch() -> None:
    grid = trace_grid(Branches(), (1, 19, 23))
    assert grid == MapGrid(MapAxis(0, 2, 5), MapAxis(0, 2, 5))
    assert grid.field_box(3, 4, (19, 23)) == influence(Branches(), (1, 19, 23), 3, 4) == Box(6, 4, 11, 9)


@pytest.mark.parametrize(
    ("name", "size", "first", "stride", "field"),
    [
        ("nin_cifar10", 32, 3, 4, 27),
        ("nin_svhn", 32, 3, 4, 35),
        ("nin_mnist", 28, 3, 4, 35),
        ("nin_imagenet", 224, 33, 32, 195),
    ],
)
def test_fields_and_strides_agree_with_the_paper(
    name: str, size: int, first: float, stride: float, field: float
) -> None:
    model = create_model(name, width=0.05).eval()
    expected = MapAxis(first, stride, field)
    assert trace_grid(model, (model.in_channels, size, size)) == MapGrid(expected, expected)
    with torch.inference_mode():
        assert trace_grid(model, (model.in_channels, size, size)) == MapGrid(expected, expected)


def test_googlenet_is_traced_through_its_branches() -> None:
    grid = trace_grid(create_model("googlenet", width=0.1).eval(), (3, 224, 224))
    assert grid.rows == grid.columns
    assert (grid.rows.stride, grid.rows.first) == (32, 2 + 4 + 8 + 16)  # the four pools; the convolutions are symmetric


def test_a_resize_keeps_positions_and_may_see_everything() -> None:
    even = trace_grid(Chain(nn.AdaptiveAvgPool2d((2, 5))), (1, 8, 20))
    assert even == MapGrid(MapAxis(1.5, 4, 4), MapAxis(1.5, 4, 4))
    uneven = trace_grid(Chain(nn.AdaptiveAvgPool2d((3, 5))), (1, 8, 20))
    assert uneven == MapGrid(MapAxis(5 / 6, 8 / 3, 8), MapAxis(1.5, 4, 4))


def test_cells_without_a_grid_divide_the_image_evenly() -> None:
    class Mixed(nn.Module):
        def category_maps(self, x: Tensor) -> Tensor:
            return x.flatten(2)[..., torch.arange(7 * 11).flip(0)].reshape(1, 1, 11, 7)

    assert trace_grid(Mixed(), (1, 7, 11)) == MapGrid(MapAxis(-2 / 11, 7 / 11, 7), MapAxis(2 / 7, 11 / 7, 11))


def test_maps_of_a_channels_last_linear_layer_have_a_grid() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(1, 5, 3, stride=2), nn.Linear(5, 2)

        def category_maps(self, x: Tensor) -> Tensor:
            return self.linear(self.conv(x).movedim(1, -1)).movedim(-1, 1)

    assert trace_grid(Places(), (1, 13, 17)) == MapGrid(MapAxis(1, 2, 3), MapAxis(1, 2, 3))
